"""Runs whose blocks are compiled are the same as others.

Dynamo's own backend stands in for Inductor, which takes minutes here; benchmarks/gpu.py compiles with Inductor.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from ardistill.config import TrainingConfig
from ardistill.student import Student, sample
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.training.run_folder import read_log
from ardistill.trajectories import TrajectoryDataset, record

pytestmark = pytest.mark.slow
CONFIG = TrainingConfig(max_steps=10, batch_size=4, tracker=None, learning_rate=1e-3, ema_decay=0.5)


def test_record_distill_and_sample_compiled_equal_those_that_are_not(teacher, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.utils.counters.clear()
    found = {}
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        own = Teacher(teacher.transformer, teacher.scheduler)  # the same weights
        record(own, folder / "data", 20, solver_steps=4, num_steps=(4,), shard_size=8, compile=compiled)
        data = TrajectoryDataset(folder / "data", 4)
        student = Student.from_teacher(teacher, data.student_config(history_layers=2))
        distill(student, data, folder / "run", replace(CONFIG, compile=compiled))
        states, _, condition = data.stacked(slice(4))
        found[compiled] = states, sample(student, states[:, 0], condition), read_log(folder / "run")[-1]["loss"]
    (states, drawn, loss), (compiled_states, compiled_drawn, compiled_loss) = found.values()
    assert torch.equal(compiled_states, states) and torch.equal(compiled_drawn, drawn) and compiled_loss == loss
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 5
    said = capfd.readouterr().err
    assert "the first shard took" in said and "the first step took" in said and "the blocks were compiled" in said


def test_compile_is_a_choice_for_rounding_alone_and_not_for_divided_weights():
    with pytest.raises(ValueError, match="compile and shard have not been tried together"):
        replace(CONFIG, compile=True, shard=True)
