"""Evaluate one student: the command ``evaluate`` in Python."""

from __future__ import annotations

from pathlib import Path

from ardistill.config import JudgeConfig
from ardistill.devices import Device
from ardistill.evaluation.compare_students import compare_students
from ardistill.evaluation.comparison import Comparison
from ardistill.evaluation.runs import evaluation_folder
from ardistill.teacher import Teacher


def evaluate(
    student: str | Path,
    trajectories: str | Path,
    out: str | Path | None = None,
    judging: JudgeConfig = JudgeConfig(),  # noqa: B008
    *,
    teacher: str | Path | Teacher | None = None,
    device: Device = None,
    mixed_precision: str = "auto",
) -> Comparison:
    """Measure a student next to its teacher and the teacher's solver in as many steps.

    Args:
        student: Folder that ``distill`` wrote (a run, a checkpoint) or ``export``.
        trajectories: Folder or URL of held-out trajectories of its teacher, recorded with another seed.
        out: Folder for metrics.json, report.html, figures.md and pictures; the run's subfolder ``evaluation`` if not
            given, ``evaluation-step-...`` of a checkpoint.
        judging: Feature network, reference and scores of text.
        teacher: The teacher, or where it is now; the name that it was recorded under if not given.
        device: Where everything runs; where a given teacher is, else the best device, if not given.
        mixed_precision: What teacher and student compute in: ``no``, ``bf16``, or ``auto``: bf16 on a GPU with it,
            else no.

    Returns:
        All metrics; ``folder`` is where they were written.

    Raises:
        ValueError: See `compare_students`.
    """
    folder = out or evaluation_folder(student)
    return compare_students(
        [student], trajectories, folder, judging, teacher=teacher, device=device, mixed_precision=mixed_precision
    )
