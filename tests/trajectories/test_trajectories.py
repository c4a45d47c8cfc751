"""The trajectory store: recorded by many, read from anywhere, made when needed; always whole, always the same."""

import dataclasses
import hashlib
import json
import os
import re
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_pipelines import save
from torch.utils.data import DataLoader, default_collate

from ardistill.files import SEAL, Store, check_seal, seal
from ardistill.teacher import Teacher
from ardistill.trajectories import (
    OnlineTrajectories,
    ShardSampler,
    TrajectoryDataset,
    export_parquet,
    info,
    record,
    repair,
    verify,
)
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import decode_shard

OPTIONS = {"solver_steps": 4, "num_steps": (1, 2, 4), "shard_size": 4, "progress": False}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def resealed(data: bytes) -> bytes:
    """With the checksum of what it now holds, so that a reader gets past it."""
    found = re.search(rb"sha256:[0-9a-f]{64}", data)
    return seal(data.replace(found[0], SEAL.encode())) if found else data


@pytest.fixture
def recorded(teacher, tmp_path):
    record(teacher, tmp_path / "data", 22, **OPTIONS)
    return tmp_path / "data"


# -- recording


def test_each_rank_takes_its_own_shards_then_helps_and_the_bytes_are_the_same(teacher, recorded, tmp_path, monkeypatch):
    published = []
    publish = Store.publish
    monkeypatch.setattr(
        Store, "publish", lambda self, name, data: (published.append(name), publish(self, name, data))[1]
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    record(teacher, tmp_path / "ranked", 22, **OPTIONS)
    shards = [name for name in published if name.startswith("shard")]
    assert shards[:3] == [shard_name(i) for i in (1, 3, 5)] and sorted(shards) == [shard_name(i) for i in range(6)]
    assert contents(tmp_path / "ranked") == contents(recorded)


def test_writers_at_once_leave_one_whole_recording(teacher, recorded, tmp_path):
    failed = []

    def work():
        try:
            record(teacher, tmp_path / "many", 22, **OPTIONS)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and contents(tmp_path / "many") == contents(recorded)


def test_a_shard_published_by_two_at_once_is_whole_whenever_it_is_read(tmp_path):
    store, blank = Store(tmp_path), SEAL.encode()
    versions = [seal(blank + bytes([i]) * 200_000) for i in range(2)]
    store.publish("x", versions[0])
    done = threading.Event()

    def write(data):
        while not done.is_set():
            store.publish("x", data)

    writers = [threading.Thread(target=write, args=(data,)) for data in versions]
    for writer in writers:
        writer.start()
    try:
        seen = set()
        for _ in range(50):
            store.sweep()  # as a process does that is through
            data = bytes(store.read("x"))
            check_seal(data, "x")
            seen.add(data)
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert seen <= set(versions)
    store.sweep()
    assert not store.leftovers()


@pytest.mark.parametrize("child_dies", [True, False], ids=["child dies", "child writes on"])
def test_a_fork_in_the_middle_of_a_write_leaves_the_file_whole(tmp_path, monkeypatch, child_dies):
    fsync, data = os.fsync, seal(SEAL.encode() + bytes(100_000))

    def fork_once(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        child = os.fork()
        if child == 0 and child_dies:
            os._exit(0)
        fsync(descriptor)
        if child:
            os.waitpid(child, 0)
            forked.append(child)

    forked, parent = [], os.getpid()
    monkeypatch.setattr(os, "fsync", fork_once)
    try:
        Store(tmp_path / "data").publish("file", data)
    finally:
        if os.getpid() != parent:  # the child is no test
            os._exit(0)
    assert forked and contents(tmp_path / "data") == {"file": data}


def test_a_clock_that_goes_backwards_changes_nothing(teacher, recorded, monkeypatch):
    expected = contents(recorded)
    for i in (1, 4):
        (recorded / shard_name(i)).unlink()
    for path in recorded.iterdir():
        os.utime(path, (4e9, 4e9))  # written in a future that has not come
    monkeypatch.setattr(time, "time", lambda: 0.0)
    record(teacher, recorded, 22, **OPTIONS)
    assert contents(recorded) == expected and verify(recorded, progress=False).whole


def test_leftovers_of_killed_writers_are_swept_and_hinder_nobody(teacher, recorded, tmp_path):
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / ".manifest.json.0123.tmp").write_bytes(b"half")
    (tmp_path / "data2" / ".shard-00001.arrow.0123.tmp").write_bytes(b"half")
    record(teacher, tmp_path / "data2", 22, **OPTIONS)
    assert contents(tmp_path / "data2") == contents(recorded)


def test_a_lost_manifest_is_made_again_for_its_own_shards_alone(teacher, recorded):
    before = contents(recorded)
    (recorded / "manifest.json").unlink()
    with pytest.raises(ValueError, match="to be empty or to hold this recording"):
        record(teacher, recorded, 22, seed=1, **OPTIONS)
    record(teacher, recorded, 22, **OPTIONS)
    assert contents(recorded) == before


def test_another_recording_that_begins_in_the_same_folder_is_noticed(teacher, tmp_path, monkeypatch):
    read, calls = Manifest.read.__func__, []

    def later_another(cls, store):
        calls.append(store)
        found = read(cls, store)
        return found if len(calls) < 3 else dataclasses.replace(found, seed=7)

    monkeypatch.setattr(Manifest, "read", classmethod(later_another))
    with pytest.raises(ValueError, match="another recording began"):
        record(teacher, tmp_path / "data", 22, **OPTIONS)


def test_times_may_differ_by_rounding_between_machines(teacher, recorded):
    before = Manifest.read(Store(recorded))
    knots = dataclasses.replace(before.knots, alpha=tuple(a * (1 + 1e-7) for a in before.knots.alpha))
    assert not before.differences(dataclasses.replace(before, knots=knots))
    far = dataclasses.replace(before.knots, alpha=tuple(a * 1.01 for a in before.knots.alpha))
    assert before.differences(dataclasses.replace(before, knots=far))


# -- faults


class Disk:
    """Counts calls of open, write, fsync and rename, and fails one of them, as a full disk does."""

    def __init__(self, monkeypatch, fail_at=None):
        import builtins
        import os

        self.calls, self.fail_at = 0, fail_at
        real_open, real_fsync, real_replace = builtins.open, os.fsync, os.replace
        disk = self

        class File:
            def __init__(self, *arguments):
                self.file = real_open(*arguments)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                try:
                    disk.call()
                except OSError:
                    self.file.write(data[: len(data) // 2])  # a part got through
                    raise
                return self.file.write(data)

            def flush(self):
                self.file.flush()

            def fileno(self):
                return self.file.fileno()

        monkeypatch.setattr("ardistill.files.whole.open", lambda *a: (self.call(), File(*a))[1], raising=False)
        monkeypatch.setattr(os, "fsync", lambda handle: (self.call(), real_fsync(handle))[1])
        monkeypatch.setattr(os, "replace", lambda *a: (self.call(), real_replace(*a))[1])

    def call(self):
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(28, "No space left on device")


def test_a_full_disk_at_any_call_loses_nothing_and_leaves_nothing_half_written(teacher, recorded, tmp_path):
    options = OPTIONS | {"shard_size": 11}
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        record(teacher, tmp_path / "whole", 22, **options)
    expected = contents(tmp_path / "whole")
    assert disk.calls >= 3 * 4  # a manifest and two shards: open, write, fsync and rename each
    for call in range(1, disk.calls + 1):
        folder = tmp_path / f"full-{call}"
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fail_at=call)
            with pytest.raises(ValueError, match="cannot be written: No space left on device; what is there is whole"):
                record(teacher, folder, 22, **options)
        there = contents(folder)
        assert all(expected[name] == data for name, data in there.items()), call
        record(teacher, folder, 22, **options)
        assert contents(folder) == expected


@pytest.mark.parametrize("code,reason", [(30, "Read-only file system"), (13, "Permission denied")])
def test_a_read_only_folder_is_named(teacher, tmp_path, monkeypatch, code, reason):
    def refuse(*_):
        raise OSError(code, reason)

    monkeypatch.setattr("ardistill.files.whole.open", refuse, raising=False)
    with pytest.raises(ValueError, match=f"manifest.json cannot be written: {reason}"):
        record(teacher, tmp_path / "data", 22, **OPTIONS)


def test_a_folder_that_cannot_be_is_named(teacher, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be"):
        record(teacher, tmp_path / "file" / "data", 22, **OPTIONS)
    with pytest.raises(ValueError, match="cannot be opened"):
        record(teacher, "nosuchprotocol://bucket/data", 22, **OPTIONS)


@pytest.fixture(scope="module")
def with_text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    teacher = Teacher.from_pretrained(save("pixart", folder / "teacher"), guidance_scale=2.0, device="cpu")
    record(teacher, folder / "data", 8, prompts=["a", "red cat", "a"], **OPTIONS)
    return teacher, folder / "data"


def read_all(folder):
    data = TrajectoryDataset(folder, 2)
    return [data[i] for i in range(len(data))], data.prompts


def test_a_flipped_byte_and_a_cut_are_noticed_in_every_kind_of_file(with_text):
    _teacher, folder = with_text
    assert sorted(contents(folder)) == [
        "conditions.safetensors", "manifest.json", "prompts.json", "shard-00000.arrow", "shard-00001.arrow",
    ]  # fmt: skip
    read_all(folder)
    generator = np.random.default_rng(0)
    for name, whole in contents(folder).items():
        path = folder / name
        for at in [0, len(whole) - 1, *generator.integers(len(whole), size=12).tolist()]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << (at % 8))]) + whole[at + 1 :])
            with pytest.raises(ValueError) as error:
                read_all(folder)
            assert name in str(error.value) and "\n" not in str(error.value), at
        for length in [0, len(whole) - 1, *generator.integers(len(whole), size=4).tolist()]:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=name):
                read_all(folder)
        path.write_bytes(whole)
    read_all(folder)


def test_what_is_broken_is_made_again_to_the_same_bytes(with_text):
    teacher, folder = with_text
    before = contents(folder)
    assert verify(folder, progress=False).whole
    (folder / "shard-00001.arrow").write_bytes(before["shard-00001.arrow"][:-50])
    (folder / "conditions.safetensors").unlink()
    (folder / "notes.txt").write_text("mine")
    (folder / ".shard-00000.arrow.0123.tmp").write_bytes(b"half")
    found = verify(folder, progress=False)
    assert found.missing == ["conditions.safetensors"] and list(found.broken) == ["shard-00001.arrow"]
    assert found.stray == ["notes.txt"] and found.leftovers == 1 and not found.whole
    assert info(folder)["num_present"] == 2
    mended = repair(teacher, folder, progress=False)
    assert mended.remade == ["conditions.safetensors", "shard-00001.arrow"] and mended.largest_difference == 0
    (folder / "notes.txt").unlink()
    assert contents(folder) == before
    other = Teacher(teacher.transformer, teacher.scheduler, 2.0, companions=teacher.companions, negative_prompt="blue")
    with pytest.raises(ValueError, match=r"negative_prompt '', got 'blue'"):
        repair(other, folder, progress=False)


def test_a_repair_that_would_make_something_else_is_refused(teacher, recorded):
    (recorded / "shard-00001.arrow").unlink()
    manifest = Manifest.read(Store(recorded))
    times = dataclasses.replace(manifest.knots, timesteps=tuple(t / 2 for t in manifest.knots.timesteps))
    bent = dataclasses.replace(manifest, knots=times)  # as another version of a model's code would bend the path
    store = Store(recorded)
    for shard in (0, 2, 3, 4, 5):
        old = bytes(store.read(shard_name(shard)))
        new = resealed(old.replace(manifest.recording.encode(), bent.recording.encode()))
        store.publish(shard_name(shard), new)
    bent.publish(store)
    with pytest.raises(ValueError, match=r"away from shard-00000.arrow, which is intact; nothing was changed"):
        repair(teacher, recorded, progress=False)


def test_a_shard_of_another_recording_or_in_anothers_place_is_refused(teacher, recorded, tmp_path):
    record(teacher, tmp_path / "other", 22, seed=1, **OPTIONS)
    whole = (recorded / "shard-00001.arrow").read_bytes()
    for stranger, reason in (
        (tmp_path / "other" / "shard-00001.arrow", "recording is"),
        (recorded / "shard-00002.arrow", "shard is 2, expected 1"),
    ):
        (recorded / "shard-00001.arrow").write_bytes(stranger.read_bytes())
        data = TrajectoryDataset(recorded, 2)
        assert data[0] and data[8]
        with pytest.raises(ValueError, match=reason):
            data[4]
        assert list(verify(recorded, progress=False).broken) == ["shard-00001.arrow"]
    repair(teacher, recorded, progress=False)
    assert (recorded / "shard-00001.arrow").read_bytes() == whole
    torch.nn.init.normal_(next(teacher.transformer.parameters()))
    with pytest.raises(ValueError, match="got another teacher"):
        repair(teacher, recorded, progress=False)


def test_manifests_of_other_versions_are_refused(recorded):
    path = recorded / "manifest.json"
    data = json.loads(path.read_text())
    for version in (2, 5, "3", None, [3]):
        path.write_text(json.dumps(data | {"version": version}))
        with pytest.raises(ValueError, match="version"):
            TrajectoryDataset(recorded, 2)


def test_no_name_leads_out_of_the_store(recorded):
    store = Store(recorded)
    for name in ("../x", "/etc/passwd", "a/b", "..", "", ".hidden", "x\n"):
        for call in (store.read, store.exists, store.delete, lambda name: store.publish(name, b"")):
            with pytest.raises(ValueError, match="plain file name"):
                call(name)
    data = json.loads((recorded / "manifest.json").read_text())
    for change in ({"shard_size": "../4"}, {"num_trajectories": -1}, {"prompts": "../prompts"}, {"seal": None}):
        raw = json.dumps({**data, "seal": SEAL, **change}, indent=1).encode()
        (recorded / "manifest.json").write_bytes(seal(raw) if SEAL.encode() in raw else raw)
        with pytest.raises(ValueError, match=r"manifest.json"):
            TrajectoryDataset(recorded, 2)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=6,
)
FUZZ = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(draw=st.data())
def test_any_manifest_is_read_or_refused(recorded, draw):
    original = (recorded / "manifest.json").read_bytes()
    try:
        data = json.loads(original) | {"seal": SEAL}
        part = data["knots"] if draw.draw(st.booleans()) else data
        part[draw.draw(st.sampled_from(sorted(part)) | st.text(max_size=5))] = draw.draw(anything)
        if draw.draw(st.booleans()):
            del part[draw.draw(st.sampled_from(sorted(part)))]
        raw = json.dumps(data).encode()
        raw = seal(raw) if SEAL.encode() in raw else raw
        (recorded / "manifest.json").write_bytes(raw)
        try:
            TrajectoryDataset(recorded, 2)[0]
        except ValueError as error:
            assert "\n" not in str(error)
    finally:
        (recorded / "manifest.json").write_bytes(original)


@FUZZ
@given(draw=st.data())
def test_any_bytes_are_a_manifest_or_refused(recorded, draw):
    original = (recorded / "manifest.json").read_bytes()
    try:
        (recorded / "manifest.json").write_bytes(draw.draw(st.binary(max_size=200)))
        with pytest.raises(ValueError, match=r"manifest.json"):
            TrajectoryDataset(recorded, 2)
    finally:
        (recorded / "manifest.json").write_bytes(original)


@FUZZ
@given(draw=st.data())
def test_any_header_of_a_shard_is_read_or_refused(recorded, draw):
    """Sealed again, so that Arrow gets to see what was changed: headers, metadata, offsets, the footer."""
    manifest, name = Manifest.read(Store(recorded)), shard_name(1)
    whole = bytearray((recorded / name).read_bytes())
    ends = st.integers(0, 1200) | st.integers(len(whole) - 1200, len(whole) - 1)
    for at in draw.draw(st.lists(ends, min_size=1, max_size=4)):
        whole[at] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        at, more = draw.draw(ends), draw.draw(st.binary(max_size=16))
        whole[at:at] = more
    try:
        found = decode_shard(manifest.layout(1), memoryview(resealed(bytes(whole))), name)
        assert found.states.shape == (4, 5, 4, 8, 8)
    except ValueError as error:
        assert "\n" not in str(error)


# -- reading


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


# -- precision, online, export


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


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_online_batches_are_the_recorded_ones_bit_for_bit(teacher, tmp_path, dtype):
    options = OPTIONS | {"dtype": dtype, "guidance_range": (1.0, 3.0), "sample_shapes": [(4, 8, 8), (4, 4, 4)]}
    record(teacher, tmp_path / "recorded", 22, **options)
    record(teacher, tmp_path / "planned", 22, manifest_only=True, **options)
    assert sorted(contents(tmp_path / "planned")) == ["manifest.json"]
    with pytest.raises(ValueError, match=r"shard-00000.arrow is missing"):
        TrajectoryDataset(tmp_path / "planned", 2)
    data = TrajectoryDataset(tmp_path / "recorded", 2, draws="shards")
    online = OnlineTrajectories(tmp_path / "planned", 2, teacher)
    for seed in range(6):
        for count in (3, 4, 7):
            rows = data.draw(count, torch.Generator().manual_seed(seed))
            assert torch.equal(rows, online.draw(count, torch.Generator().manual_seed(seed)))
            ours, theirs = (default_collate([x[int(row)] for row in rows]) for x in (data, online))
            assert torch.equal(ours["states"], theirs["states"])
            assert torch.equal(ours["denoised"], theirs["denoised"])
            assert all(torch.equal(x, theirs["condition"][name]) for name, x in ours["condition"].items())


def test_online_makes_each_shard_of_a_batch_once(teacher, tmp_path):
    record(teacher, tmp_path / "planned", 40, manifest_only=True, **OPTIONS)
    online = OnlineTrajectories(tmp_path / "planned", 2, teacher)
    made = []
    make = online._shards.load
    online._shards.load = lambda shard: (made.append(shard), make(shard))[1]
    for seed, count in enumerate((4, 12, 4)):
        made.clear()
        for row in online.draw(count, torch.Generator().manual_seed(seed)):
            online[int(row)]
        assert len(made) <= -(-count // 4) and len(set(made)) == len(made)


def test_online_distillation_ends_with_the_recorded_ones_weights(tmp_path, monkeypatch):
    from ardistill.cli import main

    command = ["record", "--teacher", "zoo/fashion", "--num_trajectories", "8", "--guidance_scale", "1.25"]
    command += ["--solver_steps", "2", "--num_steps", "[2]", "--shard_size", "2"]
    main([*command, "--out", f"{tmp_path}/data"])
    main([*command, "--out", f"{tmp_path}/planned", "--manifest_only", "true"])
    options = ["--num_steps", "2", "--history_layers", "1", "--training.max_steps", "3", "--training.batch_size", "2"]
    main(["distill", "--trajectories", f"{tmp_path}/data", "--out", f"{tmp_path}/read", "--draws", "shards", *options])
    main(
        ["distill", "--trajectories", f"{tmp_path}/planned", "--out", f"{tmp_path}/made", "--online", "true", *options]
    )
    digests = [
        hashlib.sha256((path).read_bytes()).hexdigest()
        for name in ("read", "made")
        for path in sorted((tmp_path / name / "student").rglob("*.safetensors"))
    ]
    assert len(digests) == 2 and digests[0] == digests[1]
    assert (tmp_path / "read" / "metrics.jsonl").read_text() == (tmp_path / "made" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("kind", ["labels", "prompts"])
def test_the_parquet_export_is_what_datasets_loads(teacher, recorded, with_text, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    folder = recorded if kind == "labels" else with_text[1]
    data = TrajectoryDataset(folder, 4)
    assert export_parquet(folder, tmp_path / "out", progress=False) == len(data)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.with_format("numpy")
    assert len(rows) == len(data) and list(rows["index"]) == list(range(len(data)))
    for i in (0, len(data) - 1):
        row, item = rows[i], data[i]
        assert np.array_equal(row["states"].reshape(-1, *row["shape"]), item["states"].numpy())
        assert np.array_equal(row["denoised"].reshape(-1, *row["shape"]), item["denoised"].numpy())
        known = data.prompts[int(data.labels[i])] if kind == "prompts" else int(data.labels[i])
        assert row["prompt" if kind == "prompts" else "label"] == known
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    export_parquet(folder, tmp_path / "out", progress=False)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    record(teacher, tmp_path / "other", 4, **OPTIONS)
    with pytest.raises(ValueError, match="to be empty or to hold this export"):
        export_parquet(tmp_path / "other", tmp_path / "out", progress=False)
