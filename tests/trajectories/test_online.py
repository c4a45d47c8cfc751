"""Trajectories that are solved when they are needed."""

import hashlib

import pytest
import torch
from torch.utils.data import default_collate
from trajectories.recordings import OPTIONS, contents

from ardistill.trajectories import (
    OnlineTrajectories,
    TrajectoryDataset,
    record,
)


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
