"""One visible loop: regression of every step onto the teacher's trajectory, then, if asked, against a discriminator."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import default_collate
from tqdm import tqdm

from ardistill.config import TrainingConfig
from ardistill.discriminator import Adversary
from ardistill.losses import inputs_and_targets, regression_loss, step_weights
from ardistill.student import Student
from ardistill.trajectories import TrajectoryDataset


def distill(
    student: Student,
    data: TrajectoryDataset,
    folder: str | Path,
    config: TrainingConfig,
    *,
    adversary: Adversary | None = None,
    validate: Callable[[Student, int], np.ndarray | None] | None = None,
    progress: bool = True,
) -> Student:
    """Train a student; the same call again resumes from the last whole checkpoint.

    Args:
        student: Trained in place.
        data: Trajectories of its teacher, at its knots.
        folder: Run folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoint.pt``; at the end
            ``student/`` (EMA).
        config: How.
        adversary: Adds the loss of a discriminator on the last step's estimates (R+D); trained along.
        validate: Called with the student (EMA) and the number of steps done, at every checkpoint; a picture that it
            returns, (height, width, 3) or (height, width, 4) bytes, goes to the tracker.
        progress: Show a bar with loss and remaining time.

    Returns:
        The student with its EMA weights, in evaluation mode.

    Raises:
        ValueError: The data's times or teacher are not the student's, or the folder holds another run.
    """
    folder = Path(folder)
    _check_data(student, data)
    facts = {
        "student": asdict(student.config),
        "training": asdict(config),
        "data": {"seed": data.manifest.seed, "num_trajectories": len(data)},
    }
    if adversary is not None:
        facts["adversarial"] = asdict(adversary.config)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.tracker,
        project_dir=str(folder),
    )
    with accelerator.main_process_first():  # the others find what the first one wrote
        _claim_folder(folder, facts)
    if config.tracker is not None:
        accelerator.init_trackers("metrics")
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    parameters = [p for p in student.parameters() if p.requires_grad]
    alone = 0 if adversary is None else adversary.config.warmup_steps  # steps of the discriminator before the student's
    optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
    scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=max(config.max_steps - alone, 1),
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
        if adversary is not None:
            adversary.load_state_dict(saved["adversary"])
        first = saved["step"]
        _forget_after(folder / "metrics.jsonl", first)
    model, optimizer = accelerator.prepare(student.train(), optimizer)
    ema.to(accelerator.device)
    if adversary is not None:
        adversary.to(accelerator.device)
        last = student.transformer.get_submodule(student.family.head[-1]).weight

    bar = tqdm(
        total=config.max_steps, initial=first, desc="distil", disable=not (progress and accelerator.is_main_process)
    )
    for step in range(first, config.max_steps):
        for part in range(config.gradient_accumulation_steps):
            # Rows follow from (seed, step) alone: there is no data position to lose. They differ on every process.
            passes = step * config.gradient_accumulation_steps + part
            drawn = passes * accelerator.num_processes + accelerator.process_index
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + drawn)
            batch = default_collate([data[int(row)] for row in data.draw(config.batch_size, generator)])
            batch = send_to_device(batch, accelerator.device)
            share = {"teacher": 0.0, "student": 1.0, "mixed": config.student_share * step / config.max_steps}
            on_policy = float(torch.rand((), generator=generator)) < share[config.inputs]
            inputs, targets = inputs_and_targets(batch["states"], batch["denoised"], data.knots, student.config.target)
            more: dict[str, float] = {}
            with accelerator.accumulate(model):
                how = (config.sequential, config.detach_history, on_policy, config.through_steps)
                with torch.set_grad_enabled(step >= alone):
                    estimates = model(inputs, batch["condition"], *how)
                    loss, errors = regression_loss(estimates, targets, weights)
                if step >= alone:
                    total = loss
                    if adversary is not None:
                        drawn_as_real = adversary.generator_loss(estimates[:, -1], batch["condition"], generator)
                        weight = adversary.weight(loss, drawn_as_real, last)
                        total = loss + weight * drawn_as_real
                        more = {"g_loss": float(drawn_as_real.detach()), "g_weight": float(weight)}
                    accelerator.backward(total)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                if adversary is not None:
                    more |= adversary.update(estimates[:, -1], batch["condition"], generator)
        if step >= alone:
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
                    file.write(json.dumps({"step": done, "loss": value, "step_errors": errors.tolist()} | more) + "\n")
        if (done % config.checkpoint_every == 0 or done == config.max_steps) and accelerator.is_main_process:
            state = {
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "ema": ema.state_dict(),
                "step": done,
            }
            if adversary is not None:
                state["adversary"] = adversary.state_dict()
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            if validate is not None:
                ema.store(parameters)
                ema.copy_to(parameters)
                picture = validate(student.eval(), done)
                ema.restore(parameters)
                student.train()
                for tracker in accelerator.trackers:
                    if picture is not None:
                        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                        tracker.log_images({"samples": picture[None]}, step=done, **layout)
    bar.close()
    accelerator.end_training()
    ema.copy_to(parameters)
    student.eval()
    if accelerator.is_main_process:
        student.save_pretrained(folder / "student")
    accelerator.wait_for_everyone()
    return student


def _check_data(student: Student, data: TrajectoryDataset) -> None:
    ours, theirs = student.config, data.manifest
    if not ours.knots.same_states(data.knots):
        raise ValueError("the recorded times are not the student's knots; make the student from the data's knots")
    if ours.fingerprint and ours.fingerprint != theirs.fingerprint:
        raise ValueError(
            f"the student's teacher ({ours.teacher or 'unnamed'}, weights {ours.fingerprint[:12]}) is not the one the "
            f"trajectories were recorded from ({theirs.teacher or 'unnamed'}, {theirs.fingerprint[:12]}); record again"
        )
    if ours.fingerprint and ours.guidance_range != theirs.guidance_range:
        raise ValueError(
            f"the student says guidance {ours.guidance_range}, its trajectories have {theirs.guidance_range}; "
            "make the student from the data's manifest"
        )


def _claim_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``config.json`` and ``environment.json``, or see that the folder is this very run's."""
    facts = json.loads(json.dumps(facts))
    path = folder / "config.json"
    if path.exists():
        before = json.loads(path.read_text())
        differing = [
            f"{part}.{name} is {before.get(part, {}).get(name)!r} there, {value!r} asked for"
            for part, values in facts.items()
            for name, value in values.items()
            if before.get(part, {}).get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{folder} holds another run ({'; '.join(differing)}); choose a new folder, or repeat its own settings"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected {folder} to be empty or to hold this run; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    path.write_text(json.dumps(facts, indent=1))


def _forget_after(log: Path, step: int) -> None:
    """Drop what was logged after the checkpoint: these steps are run again."""
    if log.exists():
        kept = [line for line in log.read_text().splitlines(True) if json.loads(line)["step"] <= step]
        log.write_text("".join(kept))


def environment() -> dict[str, Any]:
    """What a figure depends on besides the configuration: versions, git commit of the working directory, device."""
    packages = ("ardistill", "torch", "diffusers", "accelerate", "numpy")
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "git_commit": git.stdout.strip() or None,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
