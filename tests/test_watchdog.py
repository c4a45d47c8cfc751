"""What is lost stops the training before it is saved; what looks wrong is told of once."""

import pytest
import torch

from ardistill.config import TrainingConfig
from ardistill.student import Student, StudentConfig
from ardistill.training import TrainingDivergedError, distill
from ardistill.trajectories import TrajectoryDataset, record
from ardistill.watchdog import Watchdog


def test_a_loss_that_is_no_number_stops_it_and_the_last_checkpoint_is_good(teacher, tmp_path):
    record(teacher, tmp_path / "data", 8, solver_steps=8, num_steps=(4,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 4)
    config = TrainingConfig(max_steps=6, batch_size=4, checkpoint_every=2, tracker=None)

    def poison(student, step):
        if step == 4:  # EMA weights are put back after it: what is poisoned is the data
            data.__class__ = type("Poisoned", (TrajectoryDataset,), {"batch": poisoned})

    def poisoned(self, rows):
        batch = TrajectoryDataset.batch(self, rows)
        return batch | {"states": batch["states"] * float("nan")}

    student = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
    with pytest.raises(TrainingDivergedError, match=r"step 5: expected finite gradients.* try a lower learning_rate"):
        distill(student, data, tmp_path / "run", config, validate=poison, progress=False)
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert max(x.name for x in (tmp_path / "run" / "checkpoints").iterdir()) == "step-00000004"
    again = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
    distill(again, TrajectoryDataset(tmp_path / "data", 4), tmp_path / "run", config, progress=False)
    assert (tmp_path / "run" / "student" / "student.json").is_file()


@pytest.mark.parametrize("looks_wrong", ["collapse", "rising gradient"])
def test_the_last_good_checkpoint_is_kept(teacher, tmp_path, monkeypatch, dies_at_its_first_checkpoint, looks_wrong):
    record(teacher, tmp_path / "data", 8, solver_steps=8, num_steps=(4,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 4)
    config = TrainingConfig(max_steps=8, batch_size=4, checkpoint_every=2, keep_checkpoints=1, tracker=None)
    steps = iter([2, 4, 6, 8])
    if looks_wrong == "collapse":
        monkeypatch.setattr(Watchdog, "diversity", lambda self, step, *_: 0.9 if step <= 4 else float("nan"))
    else:
        monkeypatch.setattr(Watchdog, "rising", property(lambda self: next(steps) > 4))

    def train(validate=None):
        student = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
        distill(student, data, tmp_path / "run", config, validate=validate, progress=False)

    for _ in range(3):  # a resumed run knows which one it is
        dies_at_its_first_checkpoint(train)
    kept = tmp_path / "run" / "checkpoints"
    assert sorted(x.name for x in kept.iterdir()) == ["step-00000004", "step-00000006"]
    train()
    assert sorted(x.name for x in kept.iterdir()) == ["step-00000004", "step-00000008"]


def test_a_rising_gradient_is_told_of_once(caplog):
    watchdog = Watchdog()
    for step in range(60):
        watchdog.gradient(step, 1.0 + 0.1 * (step % 5))
    watchdog.gradient(60, 1000.0)  # one alone is clipped, and common
    assert not caplog.messages and not watchdog.rising
    for step in range(61, 290):
        watchdog.gradient(step, 30.0)
    assert watchdog.rising
    [line] = caplog.messages
    assert "10 times or more" in line and "lower learning_rate" in line
    for step in range(290, 300):
        watchdog.gradient(step, 2.0)
    assert not watchdog.rising
    with pytest.raises(TrainingDivergedError, match="their norm is nan"):
        watchdog.gradient(300, float("nan"))


def test_collapsed_samples_are_told_of(caplog):
    expected = torch.randn(16, 4, 8, 8)
    assert Watchdog().diversity(5, expected * 0.9, expected) == pytest.approx(0.9)
    assert not caplog.messages
    Watchdog().diversity(5, expected[:1] + 0.1 * expected, expected)
    assert "they collapse" in caplog.messages[0]
    Watchdog().diversity(5, expected * float("nan"), expected)
    assert len(caplog.messages) == 2
