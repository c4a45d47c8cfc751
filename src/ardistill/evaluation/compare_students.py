"""Compare students of one teacher on held-out trajectories: the commands ``compare`` and ``evaluate`` in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ardistill.config import JudgeConfig
from ardistill.core.config import StudentConfig
from ardistill.core.knots import Knots
from ardistill.devices import Device, resolve_device
from ardistill.evaluation.compare_samplers import compare_samplers
from ardistill.evaluation.comparison import Comparison
from ardistill.evaluation.diagnostics import exposure_bias
from ardistill.evaluation.headlines import Figures
from ardistill.evaluation.judge import Judge
from ardistill.evaluation.runs import check_held_out, run_of
from ardistill.evaluation.sampler import Sampler
from ardistill.files import check_folder, write_whole
from ardistill.student import Student, check_whole
from ardistill.teacher import Teacher, check_same_teacher, load_recorded_teacher
from ardistill.trajectories import Manifest, TrajectoryDataset

MEASURED = 200
"""Trajectories that errors per step are averaged over."""


def compare_students(
    students: Sequence[str | Path],
    trajectories: str | Path,
    out: str | Path,
    judging: JudgeConfig = JudgeConfig(),  # noqa: B008
    *,
    teacher: str | Path | Teacher | None = None,
    device: Device = None,
    mixed_precision: str = "auto",
) -> Comparison:
    """Measure students of one teacher side by side, from the same noise, with paired intervals against the first.

    The arms are the teacher, its solver in as many steps as each student has (``solver_4``), and the students by the
    names of their run folders.

    Args:
        students: Folders that ``distill`` wrote (runs, checkpoints) or ``export``; the first is the baseline.
        trajectories: Folder or URL of held-out trajectories of their teacher, recorded with another seed.
        out: Folder for metrics.json, report.html, samples.png, exposure_bias.png and figures.md.
        judging: Feature network, reference and scores of text.
        teacher: The teacher, or where it is now; the name that it was recorded under if not given.
        device: Where everything runs; where a given teacher is, else the best device, if not given.
        mixed_precision: What teacher and students compute in: ``no``, ``bf16``, or ``auto``: bf16 on a GPU with it,
            else no.

    Returns:
        All metrics; ``folder`` is ``out``.

    Raises:
        ValueError: Two students have one name or a reserved one, the students, the teacher and the trajectories do not
            belong together, the trajectories are those of a student's training, or ``out`` cannot be written.
    """
    if not students:
        raise ValueError("expected one student or more to compare, got none")
    check_folder(out)
    paths = dict(zip(_names(students), students, strict=True))
    where = resolve_device(device, teacher.device if isinstance(teacher, Teacher) else None)
    loaded = {name: Student.from_pretrained(path, where) for name, path in paths.items()}
    for name, path in paths.items():
        check_whole(loaded[name].config, path)
    data = trajectories_of(loaded, trajectories)
    manifest = next(iter(data.values())).manifest
    for name, path in paths.items():
        check_held_out(path, loaded[name].config, manifest)
    found_teacher = _teacher(manifest, teacher, where)
    judge = Judge.from_config(judging, found_teacher, where)
    found = measure_students(loaded, data, found_teacher, judge, mixed_precision=mixed_precision)
    found = replace(found, folder=Path(out))
    prompts = next(iter(data.values())).prompts
    found.write(out, f"Students of {manifest.teacher}", columns=prompts or None)
    write_whole(Path(out) / "figures.md", found.markdown().encode())
    return found


def measure_students(
    students: Mapping[str, Student],
    data: Mapping[Knots, TrajectoryDataset],
    teacher: Teacher,
    judge: Judge,
    *,
    solvers: Mapping[str, int] | None = None,
    baseline: str | None = None,
    selected: str | None = None,
    mixed_precision: str = "auto",
) -> Comparison:
    """Compare loaded students with their teacher and its solvers, and measure each student's errors per step.

    Args:
        students: Name -> student, in evaluation mode.
        data: Held-out trajectories at the knots of each student, from `trajectories_of`.
        teacher: The teacher of the trajectories, at their guidance.
        judge: Networks and reference.
        solvers: Name -> steps of further arms, drawn by the teacher's solver; ``solver_4`` and the like, for each
            number of steps that a student has, if not given.
        baseline: The student that the others are compared with; the first if not given.
        selected: The student that the report opens with; the one with the lowest FD if not given.
        mixed_precision: What teacher and students compute in, as for `compare_students`.

    Raises:
        ValueError: See `compare_samplers`.
    """
    if solvers is None:
        solvers = {f"solver_{n}": n for n in sorted({knots.num_steps for knots in data})}
    first = next(iter(data.values()))
    baseline = baseline or next(iter(students))
    arms = {"teacher": Sampler.of_teacher(teacher, first.manifest.solver_steps, mixed_precision)}
    arms |= {name: Sampler.of_teacher(teacher, num_steps, mixed_precision) for name, num_steps in solvers.items()}
    arms |= {name: Sampler.of_student(student, mixed_precision) for name, student in students.items()}
    states, _, condition = first.stacked()
    found = compare_samplers(
        teacher,
        teacher.decode(states[:, -1], frames=True),
        arms,
        states[:, 0],
        condition,
        judge,
        labels=first.labels,
        prompts=[first.prompts[i] for i in first.labels] if first.prompts else None,
        baseline=baseline,
    )
    errors = {}
    for name, student in students.items():
        states, denoised, condition = data[student.config.knots].stacked(slice(MEASURED))
        solver = first.manifest.knots
        errors[name] = exposure_bias(student, teacher, states, denoised, condition, solver, mixed_precision)
    return replace(
        found,
        error_per_step=errors,
        selected=selected or min(students, key=lambda name: _fd(found.arms[name])),
        with_history=_with_history({name: x.config for name, x in students.items()}, baseline),
    )


def _fd(figures: Figures) -> float:
    """FD to the data, or to the teacher where there is no reference."""
    return next(x for name in ("fd", "fd_to_teacher") if (x := figures.get(name)) is not None)


def _with_history(students: Mapping[str, StudentConfig], baseline: str) -> tuple[str, ...]:
    """Students that differ from a baseline without history by their history alone."""
    if students[baseline].history_layers:
        return ()
    plain = {name: replace(x, history_layers=0, mask="M2", gated=True) for name, x in students.items()}
    return tuple(name for name, x in students.items() if x.history_layers and plain[name] == plain[baseline])


def trajectories_of(students: Mapping[str, Student], trajectories: str | Path) -> dict[Knots, TrajectoryDataset]:
    """Open trajectories at the knots of each student.

    Args:
        students: Name -> student.
        trajectories: Folder or URL.

    Raises:
        ValueError: The trajectories lack states at the knots of a student, or cannot be read.
    """
    return {x.config.knots: TrajectoryDataset(trajectories, x.config.knots) for x in students.values()}


def _names(students: Sequence[str | Path]) -> list[str]:
    """A name for each student: its run folder's, with the step of a checkpoint behind it."""
    names = [f"{run.name}{step}" for run, step in map(run_of, students)]
    if len(set(names)) < len(names) or any(re.fullmatch(r"teacher|solver(_\d+)?", name) for name in names):
        raise ValueError(
            f"expected run folders of different names, other than teacher and solver, got {', '.join(names)}; rename "
            "one, or link to it under another name"
        )
    return names


def _teacher(manifest: Manifest, teacher: str | Path | Teacher | None, device: torch.device) -> Teacher:
    """The teacher of the trajectories, loaded unless it is given."""
    if not isinstance(teacher, Teacher):
        return load_recorded_teacher(manifest, teacher, device)
    check_same_teacher("the trajectories", manifest, teacher, "give the right teacher")
    low, high = manifest.guidance_range
    if not low <= teacher.guidance_scale <= high:
        raise ValueError(
            f"expected the teacher at the trajectories' guidance scale, {low:g} to {high:g}, got "
            f"{teacher.guidance_scale:g}; load it at theirs"
        )
    return teacher.to(device)
