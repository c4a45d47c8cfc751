"""The training loop: regression of every step onto the teacher's trajectory and, optionally, a discriminator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor

from ardistill.config import TrainingConfig
from ardistill.devices import device_of, tf32
from ardistill.families import Condition
from ardistill.files import checkpoints
from ardistill.progress import bar as progress_bar
from ardistill.student import Student, sample
from ardistill.training.adversary import Adversary, LastLayer
from ardistill.training.fsdp import shard
from ardistill.training.launch import (
    check_adversary,
    check_data,
    check_launch,
    check_schedule_and_tracker,
    make_accelerator,
    settled,
)
from ardistill.training.losses import inputs_and_targets, regression_loss, step_weights
from ardistill.training.run_folder import Settings, append_log, check_run_folder, claimed, is_logged, truncate_log
from ardistill.training.state import TrainingState
from ardistill.training.watchdog import COLLAPSED
from ardistill.trajectories import TrajectoryDataset

Validate = Callable[[Student, int], np.ndarray | None]
"""(student with its EMA weights, optimiser steps done) -> picture, (height, width, 3 or 4) bytes, or None."""


def distill(
    student: Student,
    data: TrajectoryDataset,
    folder: str | Path,
    config: TrainingConfig,
    *,
    start: str | None = None,
    adversary: Adversary | None = None,
    validate: Validate | None = None,
    progress: bool = True,
) -> Student:
    """Train a student on its teacher's trajectories.

    The same call again resumes from the last whole checkpoint. With a larger ``max_steps`` it continues a finished run,
    only with a constant learning rate and inputs other than ``mixed``.

    Args:
        student: Trained in place. A single process trains it on its present device; several processes, launched by
            accelerate, train it on their own devices.
        data: Trajectories of its teacher, at its knots.
        folder: Run folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``; at the end
            ``student/`` (EMA) and, for a student with adapters, ``adapters/``. Several machines have to share it.
        config: Options of the training.
        start: Path that the student was read from, if it does not start from its teacher's weights; kept in
            ``config.json``.
        adversary: Adds a discriminator's loss on the last step's estimates (R+D); trained along with the student.
        validate: Called at every checkpoint with the student (EMA weights) and the number of steps done. A picture that
            it returns, (height, width, 3) or (height, width, 4) bytes, goes to the tracker.
        progress: Show a progress bar with loss and remaining time.

    Returns:
        The student with its EMA weights, in evaluation mode; with ``shard`` still divided over the processes.

    Raises:
        ValueError: The data's times or teacher differ from the student's, the folder holds another run or no whole
            checkpoint or is being trained in, or the launch does not suit the configuration.
        TrainingDivergedError: Loss or gradients are NaN or infinite; a subclass of ``ValueError``.
    """
    check_run_folder(folder)  # as given: a Path would no longer show that it is a URL
    folder = Path(folder)
    check_data(student, data)
    check_schedule_and_tracker(config)
    check_adversary(student, adversary)
    config = settled(config, folder, device_of(student))
    accelerator = make_accelerator(device_of(student), config, folder)
    check_launch(accelerator, config)
    with tf32(accelerator.device), claimed(folder, _settings(student, data, config, start, adversary), accelerator):
        run = _start(student, data, folder, config, accelerator, adversary)
        hidden = not (progress and accelerator.is_main_process)
        bar = progress_bar(total=config.max_steps, initial=run.state.step, desc="distil", disable=hidden)
        while run.state.step < config.max_steps:
            errors, figures = run.zero_errors(), {}
            for part in range(config.gradient_accumulation_steps):
                batch = _draw_batch(run, part)
                with accelerator.accumulate(run.model):
                    estimates, loss, pass_errors = _estimate(run, batch)
                    errors += pass_errors / config.gradient_accumulation_steps
                    figures = _update_student(run, batch, estimates, loss)
                    figures |= _update_discriminator(run, batch, estimates)
            run.state.finish_step()
            bar.update()
            if is_logged(run.state.step, config.max_steps):
                bar.set_postfix(loss=_log(run, errors, figures))
            if run.state.step % config.checkpoint_every == 0 or run.state.step == config.max_steps:
                _checkpoint(run)
                _validate(run, validate)
        bar.close()
        return _finish(run)


@dataclass(frozen=True)
class _Run:
    """What every step of one run uses."""

    state: TrainingState
    data: TrajectoryDataset
    folder: Path
    config: TrainingConfig
    accelerator: Accelerator
    model: Any
    """The student as accelerate distributes it."""
    optimizer: Any
    """The optimiser as accelerate calls it: only at the last pass of a step."""
    step_weights: Tensor
    """Loss weight of each of the student's steps, (s,)."""
    last_layer: LastLayer | None
    """The student's output layer, if there is an adversary."""

    @property
    def draws_samples(self) -> bool:
        """Whether this process draws samples: the first one, or all if the student is divided over them."""
        return self.accelerator.is_main_process or self.config.shard

    def zero_errors(self) -> Tensor:
        """Zeros for the sum of the loss and of each step's error, (1 + s,)."""
        return torch.zeros(1 + self.state.student.num_steps, device=self.accelerator.device)


def _settings(
    student: Student, data: TrajectoryDataset, config: TrainingConfig, start: str | None, adversary: Adversary | None
) -> Settings:
    """What ``config.json`` holds, and what has to be equal for a run to be resumed."""
    settings: Settings = {
        "student": asdict(student.config),
        "training": asdict(config),
        "data": {"seed": data.manifest.seed, "num_trajectories": len(data), "draws": data.draws},
        "start": {"student": start},
    }
    return settings if adversary is None else settings | {"adversarial": asdict(adversary.config)}


def _start(
    student: Student,
    data: TrajectoryDataset,
    folder: Path,
    config: TrainingConfig,
    accelerator: Accelerator,
    adversary: Adversary | None,
) -> _Run:
    """Place and distribute the student, and restore the last checkpoint if there is one."""
    if config.tracker is not None:
        accelerator.init_trackers("metrics")
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    student.to(accelerator.device).train()
    if config.shard:
        shard(student, accelerator.device)
    state = TrainingState(student, config, adversary)
    weights = step_weights(student.config.knots, student.config.target).to(accelerator.device)
    last_layer = None
    if adversary is not None:
        adversary.to(accelerator.device)
        last_layer = LastLayer(student)
    _resume(state, folder, config, accelerator.is_main_process)
    # A student that is already divided over the processes is not to be wrapped in DDP as well.
    model = accelerator.prepare_model(student, evaluation_mode=config.shard)
    optimizer = accelerator.prepare_optimizer(state.optimizer)
    return _Run(state, data, folder, config, accelerator, model, optimizer, weights, last_layer)


def _resume(state: TrainingState, folder: Path, config: TrainingConfig, is_main_process: bool) -> None:
    """Restore the last whole checkpoint, which the first process chooses for all, and cut the log there."""
    found = [str(checkpoints.newest(folder / "checkpoints") or "") if is_main_process else ""]
    broadcast_object_list(found)
    if found[0]:
        state.load(Path(found[0]))
    if is_main_process:
        truncate_log(folder, state.step, config.max_steps)


class _Batch(NamedTuple):
    """Trajectories of one forward pass."""

    inputs: Tensor
    """Teacher-forced input of each step, (b, s, c, h, w)."""
    targets: Tensor
    """Target of each step, (b, s, c, h, w)."""
    condition: Condition
    """One row per trajectory."""
    on_policy: bool
    """Whether each step is given the student's own estimate instead of ``inputs``."""
    generator: torch.Generator
    """Source of further random draws of this pass, on the CPU."""


def _draw_batch(run: _Run, part: int) -> _Batch:
    """Draw the trajectories of the ``part``-th forward pass of this step.

    They follow from seed, step and process alone, so that a resumed run needs no position in the data.
    """
    config, accelerator, step = run.config, run.accelerator, run.state.step
    passes = step * config.gradient_accumulation_steps + part
    seed = config.seed * 1_000_003 + passes * accelerator.num_processes + accelerator.process_index
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for dropout inside a model
    batch = send_to_device(run.data.batch(run.data.draw(config.batch_size, generator)), accelerator.device)
    share = {"teacher": 0.0, "student": 1.0, "mixed": config.student_share * step / config.max_steps}
    on_policy = float(torch.rand((), generator=generator, device="cpu")) < share[config.inputs]
    if config.shard and config.inputs == "mixed":
        # Weights are gathered at each step: a process that takes the other branch would block all of them.
        choice = [on_policy]
        broadcast_object_list(choice)
        on_policy = choice[0]
    target = run.state.student.config.target
    inputs, targets = inputs_and_targets(batch["states"], batch["denoised"], run.data.knots, target)
    return _Batch(inputs, targets, batch["condition"], on_policy, generator)


def _estimate(run: _Run, batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Run the student and compare it with the teacher.

    Returns:
        Estimates, (b, s, c, h, w); regression loss; and, detached, that loss and the error of each step, (1 + s,).
    """
    config = run.config
    options = (config.sequential, config.detach_history, batch.on_policy, config.through_steps)
    with torch.set_grad_enabled(run.state.trains_student):
        estimates = run.model(batch.inputs, batch.condition, *options)
        loss, step_errors = regression_loss(estimates, batch.targets, run.step_weights)
    return estimates, loss, torch.cat([loss.detach().view(1), step_errors.detach()])


def _update_student(run: _Run, batch: _Batch, estimates: Tensor, regression: Tensor) -> dict[str, float]:
    """Backward pass and, at the last pass of a step, the optimiser's step; not during the discriminator's warm-up.

    Returns:
        Numbers for the log.
    """
    if not run.state.trains_student:
        return {}
    accelerator, state = run.accelerator, run.state
    loss, figures = _student_loss(run, batch, estimates, regression)
    accelerator.backward(loss)
    if accelerator.sync_gradients:
        norm = float(accelerator.clip_grad_norm_(state.parameters, run.config.max_grad_norm))
        state.watchdog.check_gradient(state.step + 1, norm)  # the norm is the same on every process
        figures["gradient_norm"] = norm
    run.optimizer.step()
    run.optimizer.zero_grad()
    return figures


def _student_loss(run: _Run, batch: _Batch, estimates: Tensor, regression: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The regression loss plus, with an adversary, its weighted loss on the last step's estimates."""
    adversary = run.state.adversary
    if adversary is None or run.last_layer is None:
        return regression, {}
    adversarial = adversary.generator_loss(estimates[:, -1], batch.condition, batch.generator)
    weight = adversary.weight(regression, adversarial, run.last_layer.weight)
    loss = regression + weight * adversarial
    return loss, {"g_loss": float(adversarial.detach()), "g_weight": float(weight)}


def _update_discriminator(run: _Run, batch: _Batch, estimates: Tensor) -> dict[str, float]:
    """One step of the discriminator, if there is one; returns numbers for the log."""
    adversary = run.state.adversary
    return {} if adversary is None else adversary.update(estimates[:, -1], batch.condition, batch.generator)


def _log(run: _Run, errors: Tensor, figures: dict[str, float]) -> str:
    """Write a line of the log with means over the processes; the loss as text, for the progress bar."""
    accelerator, state = run.accelerator, run.state
    loss, *step_errors = accelerator.reduce(errors, "mean").tolist()
    accelerator.log({"loss": loss, "learning_rate": state.scheduler.get_last_lr()[0]} | figures, step=state.step)
    if accelerator.is_main_process:
        append_log(run.folder, {"step": state.step, "loss": loss, "step_errors": step_errors} | figures)
    return f"{loss:.5f}"


def _checkpoint(run: _Run) -> None:
    """Write a checkpoint; it counts as good if samples are diverse and the watchdog suspects nothing."""
    state = run.state
    if run.draws_samples:
        with state.averaged():
            diversity = _diversity(run)
        if diversity >= COLLAPSED and not state.watchdog.suspects:
            state.good_step = state.step
    state.save(run.folder / "checkpoints", run.config.keep_checkpoints)


def _diversity(run: _Run) -> float:
    """Diversity of samples relative to the teacher's; 1 if there is only one trajectory to compare with."""
    rows, state = run.data.rows_by_shape[0][:16], run.state
    if len(rows) < 2:
        return 1.0
    states, _denoised, condition = send_to_device(run.data.stacked(rows), run.accelerator.device)
    drawn = sample(state.student, states[:, 0], condition)[:, -1]
    diversity = state.watchdog.check_diversity(state.step, drawn, states[:, -1])
    run.accelerator.log({"diversity": diversity}, step=state.step)
    return diversity


def _validate(run: _Run, validate: Validate | None) -> None:
    """Call ``validate`` with the EMA weights and send its picture to the trackers."""
    if validate is None or not run.draws_samples:
        return
    state = run.state
    with state.averaged():
        picture = validate(state.student, state.step)
        if picture is None:
            return
        for tracker in run.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": picture[None]}, step=state.step, **layout)


def _finish(run: _Run) -> Student:
    """Give the student its EMA weights, write it, and release what the run held."""
    student, folder = run.state.student, run.folder
    if run.last_layer is not None:
        run.last_layer.release()
    for tracker in run.accelerator.trackers:  # not accelerator.end_training, which also ends the process group
        tracker.finish()
    run.state.ema.copy_to(run.state.parameters)
    student.eval()
    student.save_pretrained(folder / "student")
    if student.config.lora_rank:
        student.save_adapters(folder / "adapters")
    run.accelerator.wait_for_everyone()
    return student
