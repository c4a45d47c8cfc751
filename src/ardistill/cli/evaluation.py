"""The commands that draw from students and measure them: sample, evaluate and compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ardistill.cli.command import Result
from ardistill.cli.options import (
    CompareOptions,
    ComputeDevice,
    ComputePrecision,
    EvaluateOptions,
    ImageSize,
    RecordedTeacher,
    SampleOptions,
)
from ardistill.config import JudgeConfig

if TYPE_CHECKING:
    from ardistill.evaluation import Comparison


def sample(
    options: SampleOptions,
    size: ImageSize,
    recorded: RecordedTeacher,
    machine: ComputeDevice,
    precision: ComputePrecision,
) -> Result:
    """Draw samples from a student: a grid, a clip, or an archive for an evaluation suite.

    The teacher's VAE decodes them. An export in bfloat16 stays in it where products are computed in bfloat16.
    """
    from ardistill.devices import resolve_device, resolve_precision
    from ardistill.evaluation import draw_samples
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher, pixel_size
    from ardistill.trajectories import load_prompts

    if options.prompt is not None and options.prompts:
        raise ValueError("expected a prompt or a file of prompts, got both")
    prompts = load_prompts(options.prompts) if options.prompts else None
    device = resolve_device(machine.device)
    narrow = resolve_precision(precision.mixed_precision, device) == "bf16"
    student = Student.from_pretrained(options.student, device, keep_dtype=narrow)
    teacher = load_recorded_teacher(student.config, recorded.teacher, device, in_parts=True)  # it is not run
    asked = asdict(size) | {"num_frames": options.num_frames}
    if asked := {key: x for key, x in asked.items() if x is not None}:
        own = pixel_size(teacher.sample_shape, teacher.vae, teacher.pixels_per_latent)
        if {"height", "width"} & {*asked}:  # both or neither
            own = {key: x for key, x in own.items() if key == "num_frames"}
        teacher.sample_shape = teacher.latent_shape(**{"height": None, "width": None} | own | asked)
    if options.compile:
        student.compile()
    draw_samples(
        student,
        teacher,
        options.out,
        count=options.count,
        seed=options.seed,
        class_labels=options.class_labels,
        prompts=prompts if options.prompt is None else [options.prompt],
        guidance_scale=options.guidance_scale,
        mixed_precision=precision.mixed_precision,
        fps=options.fps,
    )
    return Result({"out": options.out, "count": options.count}, f"{options.count} samples in {options.out}")


def evaluate(
    options: EvaluateOptions,
    judging: JudgeConfig,
    recorded: RecordedTeacher,
    machine: ComputeDevice,
    precision: ComputePrecision,
) -> Result:
    """Measure a student beside its teacher and the teacher's own solver at the same number of steps."""
    from ardistill import evaluation

    found = evaluation.evaluate(
        options.student,
        options.trajectories,
        options.out,
        judging,
        teacher=recorded.teacher,
        device=machine.device,
        mixed_precision=precision.mixed_precision,
    )
    return _report(found, options.out)


def compare(
    options: CompareOptions,
    judging: JudgeConfig,
    recorded: RecordedTeacher,
    machine: ComputeDevice,
    precision: ComputePrecision,
) -> Result:
    """Measure students of one teacher side by side, from the same noise, with paired intervals against the first.

    Compares finished runs (students, trajectories, out) or the arms of a recipe (recipe, arms); arms that are not
    finished yet are recorded and trained first, on equal terms.
    """
    from ardistill import evaluation, studies

    students, trajectories, out = options.students, options.trajectories, options.out
    teacher, device, computed_in = recorded.teacher, machine.device, precision.mixed_precision
    if options.recipe:
        if students or trajectories:
            raise ValueError("a recipe gives students and trajectories: leave those out")
        found = studies.compare_recipe(
            options.recipe, out, options.arms, judging, teacher=teacher, device=device, mixed_precision=computed_in
        )
        return _report(found)
    if options.arms:
        raise ValueError("arms are a recipe's: name it with --recipe")
    if not students or not trajectories or not out:
        raise ValueError("expected a recipe, or one student or more, held-out trajectories and a folder for the report")
    found = evaluation.compare_students(
        students, trajectories, out, judging, teacher=teacher, device=device, mixed_precision=computed_in
    )
    return _report(found, out)


def _report(found: Comparison, out: str | None = None) -> Result:
    """The metrics and where they were written: ``out`` as the user wrote it, or the default folder."""
    text = f"{found.table()}\nReport: {Path(out or str(found.folder)) / 'report.html'}"
    return Result(found.to_dict() | {"out": out or str(found.folder)}, text)
