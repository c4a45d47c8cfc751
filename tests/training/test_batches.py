"""Batches are read by a thread while the pass before runs, and are those that the main thread would have drawn."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from ardistill.config import TrainingConfig
from ardistill.student import Student
from ardistill.training import batches as module
from ardistill.training import distill
from ardistill.training.batches import batches
from ardistill.trajectories import OnlineTrajectories, TrajectoryDataset, record

CONFIG = TrainingConfig(
    max_steps=5, batch_size=3, gradient_accumulation_steps=2, inputs="mixed", tracker=None, checkpoint_every=2
)


class Noting(TrajectoryDataset):
    """Notes the thread of each batch."""

    def draw(self, count, generator):
        self.threads = [*getattr(self, "threads", []), threading.current_thread().name]
        return super().draw(count, generator)


@pytest.fixture
def data(teacher, tmp_path):
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(4,), shard_size=8, progress=False)
    return Noting(tmp_path / "data", 4)


@pytest.fixture
def student(teacher, data):
    return Student.from_teacher(teacher, data.student_config(history_layers=1, target="anchored"))


def drawn(data, student, first_step):
    with batches(data, student, CONFIG, Accelerator(), first_step) as found:
        return [(*batch, torch.initial_seed()) for batch in found]


def equal(ours, theirs):
    (x, y, condition, on_policy, generator, seed), other = ours, theirs
    assert torch.equal(x, other[0]) and torch.equal(y, other[1]) and (on_policy, seed) == (other[3], other[5])
    assert all(torch.equal(value, other[2][name]) for name, value in condition.items())
    return torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other[4]))


def test_they_are_the_same_in_a_thread_and_from_any_step_on(data, student):
    ahead = drawn(data, student, 0)
    assert len(ahead) == 10 and set(data.threads) == {"batches"}
    assert not torch.equal(ahead[0][0], ahead[1][0]) and {batch[3] for batch in ahead} == {False, True}
    resumed = drawn(data, student, 3)
    data.reads_ahead, data.threads = False, []
    at_once = drawn(data, student, 0)
    assert set(data.threads) == {"MainThread"}
    assert len(resumed) == 4 and all(equal(*pair) for pair in zip(ahead[6:], resumed, strict=True))
    assert all(equal(*pair) for pair in zip(drawn(data, student, 0), at_once, strict=True))


def test_the_next_one_is_read_while_a_pass_runs(data, student):
    with batches(data, student, CONFIG, Accelerator(), 0) as found:
        for count in (2, 3):
            next(found)
            limit = time.time() + 10
            while len(data.threads) < count and time.time() < limit:
                time.sleep(0.001)
            assert len(data.threads) == count  # this one and the one after it, no more
    assert "batches" not in [thread.name for thread in threading.enumerate()]


def test_a_teacher_that_solves_on_the_device_is_not_called_by_a_thread(teacher, data, tmp_path):
    online = OnlineTrajectories(tmp_path / "data", 4, teacher)
    assert data.reads_ahead and not online.reads_ahead


def test_damaged_data_ends_the_training_as_it_would_without_a_thread(teacher, data, tmp_path):
    path = tmp_path / "data" / "shard-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    said = []
    for data.reads_ahead in (True, False):
        student = Student.from_teacher(teacher, data.student_config(history_layers=1))
        with pytest.raises(ValueError, match=r"shard-00001.arrow.*checksum") as error:
            distill(student, data, tmp_path / f"run-{data.reads_ahead}", replace(CONFIG, inputs="teacher"))
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_read_that_does_not_return_does_not_hold_up_the_end(data, student, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    began = time.time()
    with pytest.raises(KeyboardInterrupt), batches(data, student, CONFIG, Accelerator(), 0) as found:
        next(found)
        while len(data.threads) < 2:  # the second is being read, by the method that is there
            time.sleep(0.001)
        data.batch = lambda rows: never.wait()
        next(found)
        raise KeyboardInterrupt
    assert time.time() - began < 10
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "batches")
    never.set()
