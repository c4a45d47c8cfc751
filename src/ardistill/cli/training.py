"""The commands that train: distill, encode and finetune."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ardistill import errors
from ardistill.cli.command import Result
from ardistill.cli.options import (
    ComputeDevice,
    DistillOptions,
    EncodeOptions,
    FinetuneOptions,
    ImageSize,
    RecordedTeacher,
    RecordedTrajectories,
)
from ardistill.config import METHODS

if TYPE_CHECKING:
    import torch

    from ardistill.core.knots import Knots
    from ardistill.evaluation import ValidationGrid
    from ardistill.student import Student
    from ardistill.teacher import Teacher
    from ardistill.trajectories import TrajectoryDataset


def distill(
    data: RecordedTrajectories, options: DistillOptions, recorded: RecordedTeacher, machine: ComputeDevice
) -> Result:
    """Train a student on recorded trajectories; the same command again resumes.

    Run it under `accelerate launch -m ardistill distill ...` for several GPUs.
    """
    import torch

    from ardistill import training
    from ardistill.core.knots import Knots
    from ardistill.devices import resolve_device
    from ardistill.evaluation import validation_grid
    from ardistill.files import Store
    from ardistill.teacher import expert_knots, load_recorded_teacher, select_knots, stock_knots
    from ardistill.trajectories import Manifest, knot_indices, steps_or_knots

    out = options.out
    training.check_run_folder(out)
    steps: int | Sequence[int] | Knots = options.num_steps
    if options.knots != "stock":
        steps = steps_or_knots(options.num_steps, options.knots or None)
    in_parts = training.reads_in_parts(options.training, options.weights) and not options.online
    device = resolve_device(None if in_parts else machine.device)
    manifest = Manifest.read(Store(data.trajectories))
    weights = training.base_weights(
        options.weights, out, options.lora_rank, device, manifest if options.online else None
    )
    where = device if weights == "nf4" else torch.device("cpu")
    teacher = load_recorded_teacher(manifest, recorded.teacher, where, weights, in_parts)
    if options.knots == "stock":
        steps = stock_knots(teacher, manifest.knots, options.num_steps)
    if options.expert is not None:
        whole = steps if isinstance(steps, Knots) else select_knots(manifest.knots, knot_indices(manifest.knots, steps))
        steps = expert_knots(teacher, whole, options.expert)
    dataset = _open_trajectories(data.trajectories, steps, options, teacher, device)
    student = _first_student(options, dataset, teacher)
    shows = teacher.draws_images and options.expert != "high_noise"  # which ends in states that are mostly noise
    validate = validation_grid(teacher, dataset, Path(out) / "samples") if shows else None
    _compare_with_solver(options.output, student, teacher, dataset, validate, device, in_parts)
    training.distill(student, dataset, out, options.training, start=options.start, validate=validate)
    loss = training.read_log(out)[-1].get("loss", math.nan)
    samples = f", samples in {out}/samples" if shows else ""
    text = f"{student.num_steps}-step student in {out}/student{samples}; loss {loss:.5f}"
    return Result({"out": out, "student": str(Path(out) / "student"), "loss": loss}, text)


def _open_trajectories(
    folder: str, steps: int | Sequence[int] | Knots, options: DistillOptions, teacher: Teacher, device: torch.device
) -> TrajectoryDataset:
    """Open recorded trajectories, or a manifest whose trajectories are solved when they are needed."""
    from ardistill.trajectories import OnlineTrajectories, TrajectoryDataset

    if options.online:
        return OnlineTrajectories(folder, steps, teacher, device, draws=options.draws)
    return TrajectoryDataset(folder, steps, draws=options.draws)


def _first_student(options: DistillOptions, data: TrajectoryDataset, teacher: Teacher) -> Student:
    """The student that training begins with: a copy of the teacher, or the one that ``options.start`` names.

    A run that resumes from a checkpoint does not read ``options.start`` again.

    Raises:
        ValueError: The student to start from is not the one that the options describe.
    """
    from ardistill.student import Student

    config = data.student_config(
        options.history_layers,
        mask=options.mask,
        target=options.target,
        output=options.output,
        gated=options.gated,
        lora_rank=options.lora_rank,
        conditioning=options.conditioning,
        expert=options.expert or "",
    )
    resumes = any(Path(options.out, "checkpoints").glob("step-*"))
    if options.start is None or resumes:
        return Student.from_teacher(teacher, config)
    return Student.from_run_for_training(options.start, config)


def _compare_with_solver(
    output: str,
    student: Student,
    teacher: Teacher,
    data: TrajectoryDataset,
    validate: ValidationGrid | None,
    device: torch.device,
    in_parts: bool,
) -> None:
    """Let the teacher do what is asked of it before training, then put the student onto its device.

    One after the other: the device never holds both. A teacher whose weights are divided over processes also draws its
    row of the pictures now, as it is not there later.
    """
    from ardistill import training
    from ardistill.evaluation import distance_to_samples, solver_samples

    states, _, condition = data.stacked(data.rows_by_shape[0][:10])
    solved = None
    with training.divided(teacher, device) if in_parts else nullcontext():
        if output == "solver":
            solved = solver_samples(teacher.to(device), student.config, states[:, 0], condition)
        if in_parts and validate is not None:
            validate.draw_teacher(device)
    if in_parts:
        training.shard(student, device)
    else:
        teacher.move_transformer("cpu")
        student.to(device)
    teacher.move_vae(device)
    if solved is None:
        return
    distance = distance_to_samples(student, solved, states[:, 0], condition)
    if os.environ.get("RANK", "0") == "0":
        drawn = "states" if student.config.expert else "images"
        errors.say(
            f"before training, the student's {drawn} differ by {distance:.1%} from those of the teacher's "
            f"{student.num_steps}-step solver"
        )


def encode(options: EncodeOptions, size: ImageSize, machine: ComputeDevice) -> Result:
    """Encode real images into latents with their labels or captions, for finetune.

    Images are scaled and cropped to the given size.
    """
    from ardistill import training
    from ardistill.teacher import Teacher

    teacher = Teacher.from_pretrained(
        options.teacher, height=size.height, width=size.width, device=machine.device, weights="float32"
    )
    count = training.encode(options.images, teacher, options.out, limit=options.limit)
    return Result({"out": options.out, "count": count}, f"{count} images in {options.out}")


def finetune(options: FinetuneOptions, recorded: RecordedTeacher, machine: ComputeDevice) -> Result:
    """Train a distilled student further, for the distribution of its images; the same command again resumes.

    Beside the regression, against a discriminator on real images (R+D) or by distribution matching (method dmd).
    """
    from ardistill import training
    from ardistill.evaluation import critic_plot, validation_grid

    out = options.out
    student = training.finetune(
        options.student,
        options.trajectories,
        out,
        method=options.method,
        real=options.real,
        teacher=recorded.teacher,
        device=machine.device,
        weights=options.weights,
        training=options.training,
        adversarial=options.adversarial,
        matching=options.matching,
        validation=validation_grid,
    )
    log = training.read_log(out)
    picture = Path(out) / f"{METHODS[options.method]}.png"
    critic_plot(log, picture)
    figures = {name: value for name, value in log[-1].items() if isinstance(value, float)}
    text = f"{student.num_steps}-step student in {out}/student; the course of its training in {picture}"
    return Result({"out": out, "student": str(Path(out) / "student"), **figures}, text)
