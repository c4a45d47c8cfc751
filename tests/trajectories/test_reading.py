"""Reading: from folders and URLs, by rows, by shards, in batches and as a stream."""

import os
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from trajectories.recordings import OPTIONS, contents

from ardistill.files import Store, check_seal
from ardistill.trajectories import (
    ShardSampler,
    TrajectoryDataset,
    record,
    repair,
    verify,
)
from ardistill.trajectories.manifest import shard_name


def test_a_url_is_recorded_and_read_as_a_folder_is(teacher, recorded, tmp_path):
    local = TrajectoryDataset(recorded, 4)
    for url in (f"file://{tmp_path}/by-url", "memory://bucket/data"):
        record(teacher, url, 22, **OPTIONS)
        store = Store(url)
        assert {name: bytes(store.read(name)) for name in store.sizes()} == contents(recorded)
        data = TrajectoryDataset(url, 4, keep=2)
        assert (data.draws, store.folder is None) == (("rows", False) if "file" in url else ("shards", True))
        for i in (0, 21, 5, 9, 13, 17, 1):
            assert torch.equal(data[i]["states"], local[i]["states"])
        assert store.folder is not None or len(data._shards) == 2
        store.delete(shard_name(3))
        with pytest.raises(ValueError, match=r"shard-00003.arrow is missing"):
            TrajectoryDataset(url, 4)
        repair(teacher, url, progress=False)
        assert bytes(store.read(shard_name(3))) == (recorded / shard_name(3)).read_bytes()
        assert verify(url, progress=False).whole
    cached = TrajectoryDataset("simplecache::memory://bucket/data", 4)
    assert torch.equal(cached[21]["states"], local[21]["states"])


def test_few_shards_stay_open_and_each_is_checked_once(teacher, recorded, monkeypatch):
    """Counted in the system's own list of what this process has mapped."""

    def maps():
        with open("/proc/self/maps") as file:
            return sum(str(recorded) in line for line in file)

    checked = []
    monkeypatch.setattr(
        "ardistill.trajectories.shards.check_seal", lambda data, where: (checked.append(where), check_seal(data, where))
    )
    data, whole = TrajectoryDataset(recorded, 4, keep=2), TrajectoryDataset(recorded, 4).stacked()
    held = data.shard(0).states
    first = held.copy()
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert torch.equal(data.batch(torch.arange(22))["states"], whole[0])
        assert len(data._shards) == 2
    assert len(checked) == 12 and len(os.listdir("/proc/self/fd")) == handles
    del whole
    assert maps() == 3  # two shards, and what is held
    assert np.array_equal(held, first)
    (recorded / shard_name(0)).write_bytes((recorded / shard_name(1)).read_bytes())
    with pytest.raises(ValueError, match="shard is 1, expected 0"):  # another file of that name is checked anew
        data[0]


def test_threads_read_through_the_same_few_shards(recorded):
    data, whole = TrajectoryDataset(recorded, 4, keep=1), TrajectoryDataset(recorded, 4).stacked()[0]
    failed = []

    def read(seed):
        try:
            for _ in range(20):
                rows = torch.randint(22, (8,), generator=torch.Generator().manual_seed(seed))
                assert torch.equal(data.batch(rows)["states"], whole[rows])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(data._shards) <= 1


def test_batches_drawn_of_shards_hold_few_shards_and_no_row_twice(recorded):
    data = TrajectoryDataset(recorded, 2, draws="shards")
    for seed in range(30):
        rows = data.draw(4, torch.Generator().manual_seed(seed))
        assert torch.equal(rows, data.draw(4, torch.Generator().manual_seed(seed)))
        assert len(rows.unique()) == 4 and len((rows // 4).unique()) <= 2  # the last shard has 2 rows
    assert len(data.draw(50, torch.Generator().manual_seed(0))) == 50  # more than there are
    with pytest.raises(ValueError, match="unknown draws 'all'"):
        TrajectoryDataset(recorded, 2, draws="all")


def test_a_batch_at_once_is_its_items_collated(recorded):
    data = TrajectoryDataset(recorded, 2)
    rows = torch.tensor([3, 20, 7, 3])
    at_once, collated = data.batch(rows), default_collate([data[int(i)] for i in rows])
    assert torch.equal(at_once["states"], collated["states"]) and at_once["states"].dtype == torch.float32
    assert torch.equal(at_once["denoised"], collated["denoised"])
    assert all(torch.equal(at_once["condition"][name], x) for name, x in collated["condition"].items())
    with pytest.raises(IndexError, match=r"0..21, got 22"):
        data[22]


def test_a_stream_gives_every_row_once_to_one_worker_and_goes_on_exactly(recorded):
    data = TrajectoryDataset(recorded, 2)
    options = {"seed": 3, "world_size": 3, "num_workers": 2, "window": 1}
    taken, shards = [], []
    for rank in range(3):
        sampler = ShardSampler(data, 2, rank=rank, **options)
        batches = list(zip(range(12), sampler, strict=False))
        again = ShardSampler(data, 2, rank=rank, start=5, **options)
        assert [batch for _, batch in zip(range(7), again, strict=False)] == [batch for _, batch in batches[5:]]
        for worker in range(2):
            mine = [batch for i, batch in batches if i % 2 == worker]
            count = 2 if {row // 4 for row in mine[0]} != {5} else 1  # batches of this worker's shard
            shards.append({row // 4 for batch in mine[:count] for row in batch})
            taken += [row for batch in mine[:count] for row in batch]
    assert sorted(taken) == list(range(22))
    assert all(len(shard) == 1 for shard in shards) and set.union(*shards) == set(range(6))
    with pytest.raises(ValueError, match="expected 8 shards or more"):
        ShardSampler(data, 2, world_size=4, num_workers=2)
    with pytest.raises(ValueError, match="do not fill a batch of 9"):
        ShardSampler(data, 9, window=2)


def test_a_loaders_workers_read_the_stream(recorded):
    data = TrajectoryDataset(recorded, 2)
    sampler = ShardSampler(data, 4, num_workers=2, window=2)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=2)
    for (_, rows), found in zip(zip(range(5), sampler, strict=False), loader, strict=False):
        assert torch.equal(found["states"], data.batch(torch.tensor(rows))["states"])


def test_half_precision_takes_half_the_disk_and_rounds_each_value_once(teacher, recorded, tmp_path):
    record(teacher, tmp_path / "half", 22, dtype="float16", **OPTIONS)
    exact, half = TrajectoryDataset(recorded, 4).stacked(), TrajectoryDataset(tmp_path / "half", 4).stacked()
    for a, b in zip(exact[:2], half[:2], strict=True):
        assert b.dtype == torch.float32 and torch.equal(a.half().float(), b)
        assert 0 < ((a - b).abs() / a.abs().clamp(min=1e-3)).max() <= 2**-11
    sizes = [sum(map(len, contents(folder).values())) for folder in (recorded, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    for parameter in teacher.transformer.parameters():
        parameter.mul_(1e4)
    with pytest.raises(ValueError, match="not finite in float16"):
        record(teacher, tmp_path / "large", 22, dtype="float16", **OPTIONS)
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        record(teacher, tmp_path / "large", 22, dtype="int8", **OPTIONS)
