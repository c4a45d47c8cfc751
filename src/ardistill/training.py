"""One visible loop: regression of every step onto the teacher's trajectory, in one folded pass."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import default_collate
from tqdm import tqdm

from ardistill.losses import inputs_and_targets, regression_loss, step_weights
from ardistill.student import Student
from ardistill.trajectories import TrajectoryDataset


@dataclass(frozen=True)
class TrainingConfig:
    """How a student is trained."""

    max_steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Trajectories per process and forward pass; the folded batch is num_steps times that."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimiser step."""
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    """A name of diffusers.optimization.SchedulerType."""
    lr_warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: str = "no"
    """``no`` or ``bf16``."""
    gradient_checkpointing: bool = False
    seed: int = 0
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints."""
    tracker: str | None = "tensorboard"
    """A tracker of accelerate; None: metrics.jsonl alone."""


def train(
    student: Student,
    data: TrajectoryDataset,
    folder: str | Path,
    config: TrainingConfig,
    *,
    validate: Callable[[Student, int], None] | None = None,
    progress: bool = True,
) -> Student:
    """Train a student; the same call again resumes from the last whole checkpoint.

    Args:
        student: Trained in place.
        data: Trajectories of its teacher, at its knots.
        folder: Run folder: ``config.json``, ``metrics.jsonl``, ``checkpoint.pt``; at the end ``student/`` (EMA).
        config: How.
        validate: Called with the student and the number of steps done, at every checkpoint.
        progress: Show a bar with loss and remaining time.

    Returns:
        The student with its EMA weights, in evaluation mode.

    Raises:
        ValueError: The data's knots are not the student's, or the folder holds another run.
    """
    folder = Path(folder)
    if data.knots != student.config.knots:
        raise ValueError("the recorded times are not the student's knots; make the student from the data's knots")
    resolved = json.loads(json.dumps({"student": asdict(student.config), "training": asdict(config)}))
    if (folder / "config.json").exists():
        if json.loads((folder / "config.json").read_text()) != resolved:
            raise ValueError(f"{folder} holds another run; choose a new folder, or repeat its own settings")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected {folder} to be empty or to hold this run; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(resolved, indent=1))

    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.tracker,
        project_dir=str(folder),
    )
    if config.tracker is not None:
        accelerator.init_trackers("metrics")
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
    scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_steps,
    )
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    weights = step_weights(student.config.knots, student.config.target)
    first = 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        ema.load_state_dict(saved["ema"])
        first = saved["step"]
    model, optimizer = accelerator.prepare(student.train(), optimizer)
    ema.to(accelerator.device)

    bar = tqdm(
        total=config.max_steps, initial=first, desc="distil", disable=not (progress and accelerator.is_main_process)
    )
    for step in range(first, config.max_steps):
        for part in range(config.gradient_accumulation_steps):
            # Rows follow from (seed, step) alone: there is no data position to lose. They differ on every process.
            generator = torch.Generator().manual_seed(config.seed)
            drawn = (
                step * config.gradient_accumulation_steps + part
            ) * accelerator.num_processes + accelerator.process_index
            generator.manual_seed(config.seed * 1_000_003 + drawn)
            rows = torch.randint(len(data), (config.batch_size,), generator=generator)
            batch = default_collate([data[int(row)] for row in rows])
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            inputs, targets = inputs_and_targets(batch["states"], batch["denoised"], data.knots, student.config.target)
            with accelerator.accumulate(model):
                estimates = model(inputs, {"class_labels": batch["class_labels"]})
                loss, errors = regression_loss(estimates, targets, weights)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
        ema.step(parameters)
        done = step + 1
        bar.update()
        if done % 10 == 0 or done == config.max_steps:
            value = float(loss.detach())
            bar.set_postfix(loss=f"{value:.5f}")
            accelerator.log({"loss": value, "learning_rate": scheduler.get_last_lr()[0]}, step=done)
            if accelerator.is_main_process:
                with open(folder / "metrics.jsonl", "a") as file:
                    file.write(json.dumps({"step": done, "loss": value, "step_errors": errors.tolist()}) + "\n")
        if (done % config.checkpoint_every == 0 or done == config.max_steps) and accelerator.is_main_process:
            state = {
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "ema": ema.state_dict(),
                "step": done,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            if validate is not None:
                ema.store(parameters)
                ema.copy_to(parameters)
                validate(student.eval(), done)
                ema.restore(parameters)
                student.train()
    bar.close()
    accelerator.end_training()
    ema.copy_to(parameters)
    student.eval()
    if accelerator.is_main_process:
        student.save_pretrained(folder / "student")
    return student
