"""W&B receives a training's scalars, settings and sample grids, offline; scripts/check_trackio.sh is for Trackio."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from ardistill import Student, TrainingConfig, TrajectoryDataset, distill, record
from ardistill.training import read_log, trackers


@pytest.fixture
def train(teacher, tmp_path):
    """Calls a training of a tiny student with a tracker, in the folder ``run``; every byte of a picture is the step."""
    record(teacher, tmp_path / "data", 4, solver_steps=4, num_steps=(1, 2), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)

    def run(tracker: str, max_steps: int) -> Path:
        student = Student.from_teacher(teacher, data.student_config(history_layers=1))
        config = TrainingConfig(max_steps=max_steps, batch_size=2, tracker=tracker, checkpoint_every=1)
        grid = lambda _, step: np.full((6, 8, 3), step, np.uint8)  # noqa: E731
        distill(student, data, tmp_path / "run", config, validate=grid, progress=False)
        return tmp_path / "run"

    return run


def records(path: Path) -> list[Record]:
    """What W&B wrote into a run's file: a header of 7 bytes, then LevelDB's log format, in blocks of 32 KiB.

    Each piece has a checksum, a length, and a type: 1 a whole record, 2 the first part of one, 4 its last.
    """
    content, position, found, parts = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if (left := -position % 2**15) and left < 7:  # a block ends with zeros where no header fits
            position += left
            continue
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found


@pytest.mark.slow
def test_wandb_receives_scalars_settings_and_grids(train, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train("wandb", 2)
    train("wandb", 3)
    first, resumed = sorted(run.glob("wandb/offline-run-*"), key=lambda x: x.stat().st_ctime_ns)
    found = [x for folder in (first, resumed) for x in records(next(folder.glob("*.wandb")))]
    started = [x.run for x in found if x.WhichOneof("record_type") == "run"]
    assert {(x.project, x.display_name, x.run_group) for x in started} == {("ardistill", "run", "run")}
    assert len({x.run_id for x in started}) == 2
    config = {x.key: json.loads(x.value_json) for x in started[-1].config.update}
    assert config["student"]["history_layers"] == 1 and config["training"]["max_steps"] == 3
    lines = [{".".join(x.nested_key) or x.key: json.loads(x.value_json) for x in one.history.item} for one in found]
    losses = {x["_step"]: x["loss"] for x in lines if "loss" in x}
    assert list(losses) == [2, 3] and losses[3] == read_log(run)[-1]["loss"]
    grids = {x["_step"]: x["samples.filenames"] for x in lines if "samples.filenames" in x}
    assert list(grids) == [1, 2, 3]
    for step, names in grids.items():
        kept = (resumed if step == 3 else first) / "files" / names[0]
        assert np.array_equal(np.asarray(Image.open(kept).convert("RGB")), np.full((6, 8, 3), step, np.uint8))


def test_a_tracker_that_is_missing_is_refused_before_anything_is_written(train, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=re.escape("pip install 'ardistill[wandb]'")):
        train("wandb", 1)
    with pytest.raises(ValueError, match="known: null, tensorboard, wandb, trackio"):
        train("weights", 1)
    assert not (tmp_path / "run").exists()


def test_wandb_without_a_login_is_refused_with_what_to_do(train, monkeypatch):
    wandb.teardown()  # it reads its variables once in a process
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody has logged in and nothing listens
    with pytest.raises(ValueError, match="wandb login, or set WANDB_MODE=offline"):
        train("wandb", 1)
    wandb.teardown()
