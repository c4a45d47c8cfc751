import json

import pytest
import torch

from ardistill.config import TrainingConfig
from ardistill.student import Student, StudentConfig
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record

CONFIG = TrainingConfig(max_steps=6, batch_size=4, checkpoint_every=3, tracker=None, learning_rate=1e-3, ema_decay=0.5)


@pytest.fixture
def folder(teacher, tmp_path):
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(1, 2, 4), shard_size=8, progress=False)
    return tmp_path


def make(teacher, data, target="state", output="solver"):
    return Student.from_teacher(teacher, StudentConfig(data.knots, 2, "M4", target, output))


@pytest.mark.parametrize(
    "target,output", [("state", "solver"), ("state", "direct"), ("denoised", "direct"), ("anchored", "solver")]
)
def test_training_lowers_the_loss(teacher, folder, target, output):
    data = TrajectoryDataset(folder / "data", 4, teacher.fingerprint())
    student = make(teacher, data, target, output)
    config = TrainingConfig(max_steps=30, batch_size=20, tracker=None, learning_rate=1e-3, ema_decay=0.5)
    distill(student, data, folder / "run", config, progress=False)
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_resumed_equals_uninterrupted(teacher, folder):
    data = TrajectoryDataset(folder / "data", 4)
    whole = distill(make(teacher, data), data, folder / "whole", CONFIG, progress=False)

    class Killed(Exception):
        pass

    def kill(student, step):
        raise Killed

    with pytest.raises(Killed):
        distill(make(teacher, data), data, folder / "killed", CONFIG, validate=kill, progress=False)
    assert not (folder / "killed" / "student").exists()
    resumed = distill(make(teacher, data), data, folder / "killed", CONFIG, progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_recorded_states_are_the_teachers(teacher, folder):
    data = TrajectoryDataset(folder / "data", 2)
    noise = teacher.noise(0, 1, 8)
    labels = (torch.arange(8) + 8) % 5
    solved = teacher.solve_ode(noise, {"class_labels": labels}, teacher.knots(8))
    rows = torch.stack([data[i]["states"] for i in range(8, 16)])
    assert torch.equal(rows, solved.states[:, [0, 4, 8]])
    assert torch.equal(torch.stack([data[i]["denoised"] for i in range(8, 16)]), solved.denoised[:, [3, 7]])


def test_recording_again_makes_what_is_missing(teacher, folder):
    path = folder / "data" / "shard-00001.arrow"
    before = path.read_bytes()
    path.unlink()
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="is missing"):
        TrajectoryDataset(folder / "data", 2)
    record(teacher, folder / "data", 20, solver_steps=8, num_steps=(1, 2, 4), shard_size=8, progress=False)
    assert path.read_bytes() == before


def test_bad_input_is_named(teacher, folder):
    with pytest.raises(ValueError, match="another teacher"):
        TrajectoryDataset(folder / "data", 2, fingerprint="0" * 64)
    with pytest.raises(ValueError, match="lacks states"):
        TrajectoryDataset(folder / "data", 8)
    with pytest.raises(ValueError, match="expected 1 to 8 steps"):
        TrajectoryDataset(folder / "data", 9)
    with pytest.raises(ValueError, match="holds other trajectories"):
        record(teacher, folder / "data", 21, solver_steps=8, num_steps=(1, 2, 4), shard_size=8)
    data = TrajectoryDataset(folder / "data", 4)
    with pytest.raises(ValueError, match="not the student's knots"):
        distill(make(teacher, TrajectoryDataset(folder / "data", 2)), data, folder / "run", CONFIG)
    (folder / "other").mkdir()
    (folder / "other" / "file").touch()
    with pytest.raises(ValueError, match="to be empty or to hold this run"):
        distill(make(teacher, data), data, folder / "other", CONFIG)
    path = folder / "data" / "shard-00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is cut"):
        TrajectoryDataset(folder / "data", 2)
    path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    with pytest.raises(ValueError, match="checksum"):
        TrajectoryDataset(folder / "data", 2)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is cut: expected"):
        TrajectoryDataset(folder / "data", 2)
