"""A diverged training stops before its weights are saved; a suspicious one is warned of once."""

import importlib
import json

import pytest
import torch

from ardistill.config import TrainingConfig
from ardistill.student import Student, StudentConfig
from ardistill.training import TrainingDivergedError, distill
from ardistill.training.watchdog import Watchdog
from ardistill.trajectories import TrajectoryDataset, record


class Poisoned(TrajectoryDataset):
    """Its fifth batch is no numbers."""

    drawn = 0

    def draw(self, count, generator):
        rows = super().draw(count, generator)
        self.drawn += 1
        if self.drawn == 5:
            self.bad = rows
        return rows

    def batch(self, rows):
        batch = super().batch(rows)
        return batch | {"states": batch["states"] * float("nan")} if rows is getattr(self, "bad", None) else batch


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_a_loss_that_is_not_finite_stops_the_training_and_the_last_checkpoint_is_good(
    teacher, tmp_path, monkeypatch, kind
):
    """At once or, where the device alone skips the update, while the next step is under way or a checkpoint is due."""
    monkeypatch.setattr(importlib.import_module("ardistill.training.distill"), "optimizer_kind", lambda _: kind)
    record(teacher, tmp_path / "data", 8, solver_steps=8, num_steps=(4,), progress=False)
    data = Poisoned(tmp_path / "data", 4)
    for every in (4, 5):
        config = TrainingConfig(max_steps=8, batch_size=4, checkpoint_every=every, tracker=None)
        run, data.drawn = tmp_path / f"run-{every}", 0
        student = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
        before = [p.clone() for p in student.parameters()]
        with pytest.raises(TrainingDivergedError, match=r"step 5: expected finite gradients.* try a lower learning_ra"):
            distill(student, data, run, config, progress=False)
        assert all(torch.isfinite(p).all() for p in student.parameters())
        assert not all(torch.equal(p, was) for p, was in zip(student.parameters(), before, strict=True))
        assert [x.name for x in run.glob("checkpoints/*")] == (["step-00000004"] if every == 4 else [])
        again = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
        distill(again, TrajectoryDataset(tmp_path / "data", 4), run, config, progress=False)
        assert (run / "student" / "student.json").is_file()


def quiet(self, make=Watchdog.__init__):
    make(self)
    self._norms.extend([1.0] * 60)


@pytest.mark.parametrize("looks_wrong", ["collapse", "rising gradient"])
def test_the_last_good_checkpoint_is_kept(teacher, tmp_path, monkeypatch, dies_at_its_first_checkpoint, looks_wrong):
    record(teacher, tmp_path / "data", 8, solver_steps=8, num_steps=(4,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 4)
    config = TrainingConfig(max_steps=8, batch_size=4, checkpoint_every=2, keep_checkpoints=1, tracker=None)
    if looks_wrong == "collapse":
        monkeypatch.setattr(Watchdog, "check_diversity", lambda self, step, *_: 0.9 if step <= 4 else float("nan"))
    else:  # as after many steps
        monkeypatch.setattr(Watchdog, "__init__", quiet)
        look = Watchdog.check_gradient
        spiking = lambda self, step, _: look(self, step, 1.0 if step <= 4 else 50.0)  # noqa: E731
        monkeypatch.setattr(Watchdog, "check_gradient", spiking)

    def train(validate=None):
        student = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
        distill(student, data, tmp_path / "run", config, validate=validate, progress=False)

    for _ in range(3):  # a resumed run remembers the good checkpoint
        dies_at_its_first_checkpoint(train)
    kept = tmp_path / "run" / "checkpoints"
    assert sorted(x.name for x in kept.iterdir()) == ["step-00000004", "step-00000006"]
    train()
    assert sorted(x.name for x in kept.iterdir()) == ["step-00000004", "step-00000008"]


def test_a_rising_gradient_is_warned_of_once(caplog):
    watchdog, step = Watchdog(), 0

    def see(norm, count):
        nonlocal watchdog, step
        for _ in range(count):
            resumed = Watchdog()
            resumed.load_state_dict(json.loads(json.dumps(watchdog.state_dict())))
            watchdog, step = resumed, step + 1
            watchdog.check_gradient(step, norm)

    see(1.0, 60)
    assert not watchdog.suspects
    see(1000.0, 1)  # a single spike is clipped and common, but a checkpoint at it is not good
    assert not caplog.messages and watchdog.suspects
    see(1.0, 10)
    assert not watchdog.suspects
    see(30.0, 200)
    assert watchdog.suspects
    [line] = caplog.messages
    assert "10 times or more" in line and "lower learning_rate" in line and "distill --start" in line
    see(2.0, 10)
    assert not watchdog.suspects
    see(900.0, 1000)
    assert watchdog.suspects and len(caplog.messages) == 2
    see(900.0, 20)  # by now it is the normal level
    assert not watchdog.suspects
    see(20_000.0, 10)
    assert watchdog.suspects and len(caplog.messages) == 3
    with pytest.raises(TrainingDivergedError, match="their norm is nan"):
        watchdog.check_gradient(step + 1, float("nan"))


def test_collapsed_samples_are_warned_of(caplog):
    expected = torch.randn(16, 4, 8, 8)
    assert Watchdog().check_diversity(5, expected * 0.9, expected) == pytest.approx(0.9)
    assert not caplog.messages
    Watchdog().check_diversity(5, expected[:1] + 0.1 * expected, expected)
    assert "they collapse" in caplog.messages[0]
    Watchdog().check_diversity(5, expected * float("nan"), expected)
    assert len(caplog.messages) == 2
