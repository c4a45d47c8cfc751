"""Trains a student of the embedded teacher one step, draws from it, and compares with the CPU in float64."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ardistill.config import TrainingConfig
from ardistill.devices import resolve_precision
from ardistill.student import Student, sample
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record

TOLERANCES = {"no": 0.01, "bf16": 0.1}
"""Largest difference of a pixel, from -1 to 1, by precision: TF32 and bfloat16 round to 3 and 2 significant digits."""


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found."""

    seconds: float
    """Duration."""
    error: float
    """Largest difference between a pixel, from -1 to 1, drawn on the device and by the CPU in float64."""
    tolerance: float
    """Largest difference that rounding explains in the device's precision."""

    @property
    def passed(self) -> bool:
        """Whether the device computes what the CPU does; NaN does not pass."""
        return self.error <= self.tolerance


def run_self_test(device: torch.device) -> SelfTest:
    """Record four trajectories, train one step on them and draw, through the functions and files that users have.

    Args:
        device: Where to train and draw; on a CPU, float32 is compared with float64.
    """
    began, precision = time.perf_counter(), resolve_precision("auto", device)
    with tempfile.TemporaryDirectory(prefix="ardistill-doctor-") as folder:
        teacher = Teacher.from_pretrained("zoo/fashion", device="cpu")
        record(teacher, f"{folder}/data", 4, solver_steps=4, num_steps=(2,), progress=False)
        data = TrajectoryDataset(f"{folder}/data", 2)
        expected = _trained(teacher, data, Path(folder, "cpu"), torch.device("cpu"))
        student = expected if device.type == "cpu" else _trained(teacher, data, Path(folder, "here"), device)
        states, _, condition = data.stacked(torch.arange(4))
        drawn = sample(student, states[:, 0], condition, precision)[:, -1].cpu()
        exact = sample(copy.deepcopy(expected).double(), states[:, 0], condition, "no")[:, -1]
    error = float((drawn - exact).abs().max())
    return SelfTest(time.perf_counter() - began, error, TOLERANCES[precision])


def _trained(teacher: Teacher, data: TrajectoryDataset, folder: Path, device: torch.device) -> Student:
    """A student with history, trained one step on a device."""
    config = data.student_config(history_layers=2, gated=False)
    student = Student.from_teacher(teacher, config).to(device)
    return distill(student, data, folder, TrainingConfig(max_steps=1, batch_size=4, tracker=None), progress=False)
