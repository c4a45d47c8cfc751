"""Command line: one subcommand per step of the way, options from the configuration classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch


def quickstart(
    out: str = "runs/quickstart",
    num_trajectories: int = 2048,
    num_eval: int = 1000,
    max_steps: int = 120,
    seed: int = 0,
) -> None:
    """Record, distil, compare and report on the embedded teacher; offline, ten minutes on two cores.

    Args:
        out: Run folder; the same command again resumes it.
        num_trajectories: Trajectories recorded for training.
        num_eval: Held-out noises that every arm is compared on.
        max_steps: Optimiser steps of each arm.
        seed: Of the noise and the training.
    """
    from ardistill.quickstart import QuickstartConfig
    from ardistill.quickstart import quickstart as run

    run(QuickstartConfig(out, num_trajectories, num_eval, max_steps, seed=seed))


def record(
    teacher: str,
    out: str,
    num_trajectories: int,
    guidance_scale: float = 1.5,
    guidance_channels: int | None = None,
    solver_steps: int = 24,
    num_steps: list[int] | None = None,
    seed: int = 0,
    shard_size: int = 256,
    device: str = "cpu",
) -> None:
    """Solve the teacher's ODE from seeded noise and keep the trajectories.

    Args:
        teacher: zoo/fashion, a diffusers folder or a Hub id.
        out: Folder of the trajectories; the same command again makes what is missing.
        num_trajectories: How many.
        guidance_scale: Classifier-free guidance; 1 is none.
        guidance_channels: Guide only so many first channels; all if not given.
        solver_steps: Steps of the solver.
        num_steps: Step counts of students to come; 1, 2, 3, 4, 6 and 8 if not given.
        seed: Of the noise.
        shard_size: Trajectories per file.
        device: cpu, cuda, ...
    """
    from ardistill.teacher import Teacher
    from ardistill.trajectories import record as run

    loaded = Teacher.from_pretrained(teacher, guidance_scale=guidance_scale, guidance_channels=guidance_channels)
    steps = tuple(num_steps or (1, 2, 3, 4, 6, 8))
    run(
        loaded,
        out,
        num_trajectories,
        name=teacher,
        solver_steps=solver_steps,
        num_steps=steps,
        seed=seed,
        shard_size=shard_size,
        device=device,
    )


def distill(
    teacher: str,
    trajectories: str,
    out: str,
    num_steps: int = 4,
    history_layers: int = 2,
    mask: str = "M4",
    target: str = "state",
    output: str = "solver",
    max_steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    ema_decay: float = 0.9999,
    mixed_precision: str = "no",
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> None:
    """Train a student on recorded trajectories; the same command again resumes.

    Args:
        teacher: What the trajectories were recorded from.
        trajectories: Folder that record wrote.
        out: Run folder; the student ends in its subfolder student.
        num_steps: Steps of the student, 1 to 8.
        history_layers: N, lower layers that see earlier steps; 0 is step distillation.
        mask: M1, M2, M3 or M4.
        target: state, denoised or anchored.
        output: solver or direct.
        max_steps: Optimiser steps.
        batch_size: Trajectories per step.
        learning_rate: Of AdamW.
        ema_decay: Of the averaged weights.
        mixed_precision: no or bf16.
        gradient_checkpointing: Less memory for more time.
        seed: Of the batches.
    """
    from ardistill.student import Student, StudentConfig
    from ardistill.teacher import Teacher
    from ardistill.training import TrainingConfig, train
    from ardistill.trajectories import TrajectoryDataset

    loaded = Teacher.from_pretrained(teacher)
    data = TrajectoryDataset(trajectories, num_steps, loaded.fingerprint())
    student = Student.from_teacher(loaded, StudentConfig(data.knots, history_layers, mask, target, output))
    config = TrainingConfig(
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        mixed_precision=mixed_precision,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    train(student, data, out, config)


def export(run: str, teacher: str, out: str, guidance_scale: float = 1.5) -> None:
    """Write a student as a diffusers folder that loads without this package.

    Args:
        run: Folder that distill wrote.
        teacher: What the student was distilled from.
        out: New folder.
        guidance_scale: Of the trajectories, for the card.
    """
    from ardistill.export import export as write
    from ardistill.export import model_card
    from ardistill.student import Student
    from ardistill.teacher import Teacher

    student = Student.from_pretrained(Path(run) / "student")
    write(student, Teacher.from_pretrained(teacher).scheduler, out, model_card(student, teacher, guidance_scale))
    print(json.dumps({"out": out}))


def sample(student: str, out: str = "samples.png", count: int = 20, seed: int = 0, device: str = "cpu") -> None:
    """Draw a grid of samples from a student, classes in turn.

    Args:
        student: Folder that distill wrote (its subfolder student).
        out: PNG file.
        count: Number of images.
        seed: Of the noise.
        device: cpu, cuda, ...
    """
    from ardistill.evaluation import sample_grid
    from ardistill.sampling import sample as draw
    from ardistill.student import Student

    loaded = Student.from_pretrained(student).to(device)
    config = loaded.transformer.config
    if config.in_channels not in (1, 3):
        raise ValueError(f"{student} draws latents of {config.in_channels} channels, which need its VAE to be seen")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    labels = torch.arange(count) % config.num_embeds_ada_norm
    images = draw(loaded, noise.to(device), {"class_labels": labels.to(device)})[:, -1].cpu().clamp(-1, 1)
    sample_grid({Path(student).parent.name or student: images}, out)
    print(json.dumps({"out": out, "count": count}))


def main() -> None:
    """Entry point. Errors of the user's input are one line and exit status 2."""
    from jsonargparse import ArgumentParser, auto_cli

    class _Parser(ArgumentParser):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "allow_abbrev": False})  # type: ignore[arg-type]

    try:
        auto_cli(
            [quickstart, record, distill, sample, export], prog="ardistill", as_positional=False, parser_class=_Parser
        )
    except ValueError as error:
        print(f"ardistill: error: {error}", file=sys.stderr)
        sys.exit(2)
