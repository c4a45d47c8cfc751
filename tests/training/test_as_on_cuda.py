"""What a training does on CUDA alone, done on the CPU: fused optimiser, late readings, checkpoints by a thread."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from processes import as_on_cuda
from tiny import open_gates

from ardistill.config import TrainingConfig
from ardistill.files import checkpoints
from ardistill.student import Student
from ardistill.training import distill
from ardistill.training.readings import Readings
from ardistill.training.state import TrainingState, optimizer_kind, saved_kind
from ardistill.trajectories import TrajectoryDataset, record

loop = importlib.import_module("ardistill.training.distill")
CONFIG = TrainingConfig(max_steps=20, batch_size=4, checkpoint_every=10, tracker=None, learning_rate=1e-3)


@pytest.fixture
def train(teacher, tmp_path):
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(4,), shard_size=8, progress=False)
    data = TrajectoryDataset(tmp_path / "data", 4)

    def run(name, validate=None, **options):
        student = Student.from_teacher(teacher, data.student_config(history_layers=2))
        open_gates(student)
        config = replace(CONFIG, **options)
        return distill(student, data, tmp_path / name, config, validate=validate, progress=False).state_dict()

    return run


def same(ours, theirs):
    return all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_a_run_keeps_the_optimiser_that_it_began_with(train, tmp_path, dies_at_its_first_checkpoint):
    assert optimizer_kind(torch.device("cuda")) == "fused" and optimizer_kind(torch.device("cpu")) == "plain"
    plain = train("plain")
    with as_on_cuda(writes_aside=True):
        fused = train("fused")
        dies_at_its_first_checkpoint(lambda validate: train("began-fused", validate))
    dies_at_its_first_checkpoint(lambda validate: train("began-plain", validate))
    assert not same(plain, fused)  # they differ by rounding
    assert same(train("began-fused"), fused)
    with as_on_cuda(writes_aside=True):
        assert same(train("began-plain"), plain)
    for kind in ("plain", "fused"):
        last = "checkpoints/step-00000020/state.json"
        whole, resumed = (json.loads((tmp_path / name / last).read_text()) for name in (kind, f"began-{kind}"))
        assert whole["optimizer_kind"] == kind and whole == resumed
        assert (tmp_path / kind / "metrics.jsonl").read_text() == (
            tmp_path / f"began-{kind}" / "metrics.jsonl"
        ).read_text()


def test_a_checkpoint_without_the_kind_is_plain(tmp_path):
    assert saved_kind(checkpoints.save(tmp_path, 1, {"step": 1}, keep=1)) == "plain"


def test_what_is_read_late_is_what_would_be_read_at_once(train, tmp_path, monkeypatch):
    with as_on_cuda(writes_aside=False):
        late = train("late", max_steps=33, checkpoint_every=30)
        monkeypatch.setattr(loop, "Readings", lambda late: Readings(False))
        at_once = train("at-once", max_steps=33, checkpoint_every=30)
    assert same(late, at_once)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("late", "at-once")]
    assert logs[0] == logs[1] and [json.loads(x)["step"] for x in logs[0].splitlines()] == [10, 20, 30, 33]
    states = [(tmp_path / name / "checkpoints/step-00000033/state.json").read_text() for name in ("late", "at-once")]
    assert states[0] == states[1] and len(json.loads(states[0])["watchdog"]["norms"]) == 33


ONE_LATE = [[], [], [1.0], [1.0, 2.0, 3.0]]
AT_ONCE = [[1.0], [1.0], [1.0, 2.0], [1.0, 2.0, 3.0]]


@pytest.mark.parametrize("late,expected", [(True, ONE_LATE), (False, AT_ONCE)])
def test_readings_are_acted_on_in_order_and_one_step_late(late, expected):
    readings, done, seen = Readings(late), [], []
    for number, after in ((1.0, lambda: None), (None, readings.end_step), (2.0, readings.end_step)):
        if number is not None:
            readings.add([torch.tensor(number)], done.extend)
        after()
        seen.append([*done])
    readings.add([torch.tensor(3.0)], done.extend)
    readings.settle()
    assert [*seen, done] == expected


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_fused_optimiser_leaves_the_weights_alone_where_the_norm_is_not_finite(teacher, tmp_path, norm):
    record(teacher, tmp_path / "data", 8, solver_steps=8, num_steps=(4,), progress=False)
    config = TrajectoryDataset(tmp_path / "data", 4).student_config(history_layers=2)
    state = TrainingState(Student.from_teacher(teacher, config), CONFIG, None, "fused")
    for value, changes in ((1.0, True), (norm, False), (1.0, True)):
        before = [p.detach().clone() for p in state.parameters]
        for parameter in state.parameters:
            parameter.grad = torch.full_like(parameter, value)
        state.skip_if_not_finite(torch.tensor(value))
        state.optimizer.step()
        equal = [torch.equal(p, was) for p, was in zip(state.parameters, before, strict=True)]
        assert not any(equal) if changes else all(equal)
