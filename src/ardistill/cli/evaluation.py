"""The commands that draw from students and measure them: sample, evaluate and compare."""

from __future__ import annotations

from pathlib import Path

from ardistill.cli.command import Result
from ardistill.cli.old import JudgeConfig, compare_students, run_of, study_arms
from ardistill.cli.options import (
    CompareOptions,
    ComputeDevice,
    EvaluateOptions,
    ImageSize,
    RecordedTeacher,
    SampleOptions,
)


def sample(options: SampleOptions, size: ImageSize, recorded: RecordedTeacher, machine: ComputeDevice) -> Result:
    """Draw samples from a student, as a grid or for an evaluation suite. The teacher's VAE decodes them."""
    from ardistill.evaluation import draw_samples
    from ardistill.student import Student
    from ardistill.teacher.recorded import load_recorded_teacher
    from ardistill.trajectories.prompts import load_prompts

    if options.prompt is not None and options.prompts:
        raise ValueError("expected a prompt or a file of prompts, got both")
    prompts = load_prompts(options.prompts) if options.prompts else None
    student = Student.from_pretrained(options.student, machine.device)
    teacher = load_recorded_teacher(student.config, recorded.teacher, machine.device)
    if size.height is not None or size.width is not None:
        teacher.sample_shape = teacher.latent_shape(size.height, size.width)
    draw_samples(
        student,
        teacher,
        options.out,
        count=options.count,
        seed=options.seed,
        class_labels=options.class_labels,
        prompts=prompts if options.prompt is None else [options.prompt],
        guidance_scale=options.guidance_scale,
    )
    return Result({"out": options.out, "count": options.count}, f"{options.count} samples in {options.out}")


def evaluate(
    options: EvaluateOptions, judging: JudgeConfig, recorded: RecordedTeacher, machine: ComputeDevice
) -> Result:
    """Measure a student beside its teacher and the teacher's own solver at the same number of steps."""
    run, step = run_of(options.student)
    out = options.out or str(run / f"evaluation{step}")
    return _report([options.student], options.trajectories, out, judging, recorded, machine)


def compare(options: CompareOptions, judging: JudgeConfig, recorded: RecordedTeacher, machine: ComputeDevice) -> Result:
    """Measure students of one teacher side by side, from the same noise, with paired intervals against the first.

    Compares finished runs (students, trajectories, out) or the arms of a recipe (recipe, arms); arms that are not
    finished yet are recorded and trained first, on equal terms.
    """
    students, trajectories, out = options.students, options.trajectories, options.out
    if options.recipe:
        if students or trajectories:
            raise ValueError("a recipe says which students and trajectories: leave those out")
        students, trajectories, out = study_arms(options.recipe, out, options.arms, machine.device)
    elif options.arms:
        raise ValueError("arms are a recipe's: name it with --recipe")
    if not students or not trajectories or not out:
        raise ValueError("expected a recipe, or one student or more, held-out trajectories and a folder for the report")
    return _report(students, trajectories, out, judging, recorded, machine)


def _report(
    students: list[str],
    trajectories: str,
    out: str,
    judging: JudgeConfig,
    recorded: RecordedTeacher,
    machine: ComputeDevice,
) -> Result:
    found = compare_students(students, trajectories, out, judging, teacher=recorded.teacher, device=machine.device)
    text = f"{found.table()}\nReport: {Path(out) / 'report.html'}"
    return Result(found.to_dict() | {"out": out}, text)
