"""The quickstart: record, distil three students, compare and export, on the embedded teacher.

The students train with equal numbers of network evaluations; one with history takes more compute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from ardistill.config import JudgeConfig, QuickstartConfig, TrainingConfig
from ardistill.evaluation import Comparison, Judge, distance_to_solver, measure_students, trajectories_of
from ardistill.publishing import export
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record
from ardistill.zoo.fashion.data import CLASS_NAMES


@dataclass(frozen=True)
class _Arm:
    """A student of the quickstart."""

    num_steps: int
    has_history: bool
    batch_factor: int
    """Batch size relative to the 4-step arms, for equal network evaluations."""


ARMS = {"kd": _Arm(1, False, 4), "step_distillation": _Arm(4, False, 1), "ard": _Arm(4, True, 1)}
"""Name of an arm -> the student."""
SOLVERS = {"solver": 4, "solver_1": 1}
"""Arm of the teacher's solver -> its steps."""


def quickstart(config: QuickstartConfig | None = None) -> Comparison:
    """Record, distil, compare, report and export; the same call again resumes.

    Writes ``trajectories/``, a run folder per arm, ``metrics.json``, ``report.html``, ``samples.png``,
    ``exposure_bias.png`` and the exported ARD student in ``student/``.

    Args:
        config: Sizes and folder; the defaults take about ten minutes on two cores.
    """
    config = config or QuickstartConfig()
    began, out = time.time(), Path(config.out)
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=config.guidance_scale, weights="float32")
    _record(teacher, config)
    students = {arm: _student(arm, teacher, config) for arm in ARMS}
    found = measure_students(
        students,
        trajectories_of(students, _recording(config, "eval")),
        teacher,
        Judge.from_config(JudgeConfig(), teacher),
        solvers=SOLVERS,
        baseline="step_distillation",
        selected="ard",
    )
    found = replace(found, notes=[*found.notes, _note(config)], folder=out)
    found.write(
        out,
        "ardistill quickstart",
        columns=CLASS_NAMES,
        shown=("teacher", "solver", *ARMS),
        plotted=("step_distillation", "ard"),
    )
    if not (out / "student").exists():
        figures, picture = found.markdown(), out / "samples.png"
        export(students["ard"], teacher, out / "student", figures=figures, picture=picture, run=out / "ard")
    print(f"finished in {time.time() - began:.0f} s")
    return found


def _recording(config: QuickstartConfig, name: str) -> Path:
    return Path(config.out) / "trajectories" / name


def _record(teacher: Teacher, config: QuickstartConfig) -> None:
    """Record trajectories to train on, and held-out ones to measure on."""
    sizes = {"train": (config.num_trajectories, config.seed), "eval": (config.num_eval, config.seed + 1000)}
    for name, (count, seed) in sizes.items():
        record(teacher, _recording(config, name), count, num_steps=(1, 4, 8), seed=seed)


def _student(arm: str, teacher: Teacher, config: QuickstartConfig) -> Student:
    """The trained student of an arm."""
    chosen = ARMS[arm]
    knots = config.knots if chosen.num_steps > 1 else 1
    data = TrajectoryDataset(_recording(config, "train"), knots, teacher.fingerprint())
    history_layers = config.history_layers if chosen.has_history else 0
    student = Student.from_teacher(teacher, data.student_config(history_layers=history_layers))
    states, _, condition = TrajectoryDataset(_recording(config, "eval"), knots).stacked(slice(200))
    start = distance_to_solver(student, teacher, states[:, 0], condition)
    print(f"{arm}: {chosen.num_steps} steps, history in {history_layers} layers; before training,", end=" ")
    print(f"it differs from the teacher's {chosen.num_steps}-step solver by {start:.1%}", flush=True)
    training = TrainingConfig(
        max_steps=config.max_steps,
        batch_size=config.batch_size * chosen.batch_factor,
        learning_rate=config.learning_rate,
        lr_scheduler="cosine",
        lr_warmup_steps=min(10, config.max_steps),
        ema_decay=0.98,
        seed=config.seed,
        checkpoint_every=100,
    )
    return distill(student, data, Path(config.out) / arm, training)


def _note(config: QuickstartConfig) -> str:
    """What was trained, for the report."""
    return (
        f"Training: {config.max_steps} steps of {config.batch_size} trajectories (the 1-step arm: "
        f"{ARMS['kd'].batch_factor * config.batch_size}), one seed; guidance {config.guidance_scale}."
    )
