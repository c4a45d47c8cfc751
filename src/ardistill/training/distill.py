"""The training loop: regression of every step onto the teacher's trajectory and, optionally, a critic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor
from tqdm import tqdm

from ardistill.config import TrainingConfig
from ardistill.devices import compiles, device_of, tf32, weights_of
from ardistill.files import checkpoints
from ardistill.files.checkpoint_writer import CheckpointWriter
from ardistill.progress import Stopwatch, tell_compiled
from ardistill.progress import bar as progress_bar
from ardistill.student import Student, sample
from ardistill.training.batches import Batch, batches
from ardistill.training.critic import Critic, LastLayer
from ardistill.training.fsdp import shard
from ardistill.training.graphed import GraphedPass, graphs
from ardistill.training.launch import (
    check_critic,
    check_data,
    check_divisible,
    check_launch,
    check_schedule_and_tracker,
    make_accelerator,
    settled,
)
from ardistill.training.losses import regression_loss, step_weights
from ardistill.training.offload import offloaded
from ardistill.training.optimizers import check_optimizer
from ardistill.training.readings import Readings
from ardistill.training.run_folder import (
    Settings,
    add_device_seconds,
    append_log,
    check_run_folder,
    claimed,
    is_logged,
    truncate_log,
)
from ardistill.training.state import TrainingState, optimizer_kind, saved_kind
from ardistill.training.trackers import start_tracker, track_picture
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
    critic: Critic | None = None,
    validate: Validate | None = None,
    progress: bool = True,
) -> Student:
    """Train a student on its teacher's trajectories.

    The same call again resumes from the last whole checkpoint. With a larger ``max_steps`` it continues a finished run,
    only with a constant learning rate and inputs other than ``mixed``.

    Args:
        student: Trained in place. A single process trains it on its present device; several processes, launched by
            accelerate, train it on their own devices. With ``shard``, each of them reads its part alone of a student
            whose teacher was loaded ``in_parts``.
        data: Trajectories of its teacher, at its knots.
        folder: Run folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``; at the end
            ``student/`` (EMA) and, for a student with adapters, ``adapters/``. Several machines have to share it.
        config: Options of the training.
        start: Path that the student was read from, if it does not start from its teacher's weights; kept in
            ``config.json``.
        critic: Adds a loss on the last step's estimates, a discriminator's (R+D) or a fake score's; trained along with
            the student.
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
    check_data(student, data, config.shard)
    if config.shard:
        check_divisible(weights_of(student.transformer))
    check_schedule_and_tracker(config)
    check_optimizer(config)
    check_critic(student, critic)
    config = settled(config, folder, device_of(student))
    accelerator = make_accelerator(device_of(student), config, folder)
    check_launch(accelerator, config)
    graphed = graphs(config, accelerator.device, accelerator.num_processes, critic is not None)
    settings = _settings(student, data, config, start, critic)
    with tf32(accelerator.device), claimed(folder, settings, accelerator, data.store.url):
        start_tracker(accelerator, folder, settings)
        run = _start(student, data, folder, config, accelerator, critic)
        backward: Callable[[Batch], Tensor] = partial(_backward, run)
        if graphed:
            backward = GraphedPass(backward, run.state.parameters)
        hidden = not (progress and accelerator.is_main_process)
        bar = progress_bar(total=config.max_steps, initial=run.state.step, desc="distil", disable=hidden)
        with run.writer, batches(data, student, config, accelerator, run.state.step) as drawn:
            while run.state.step < config.max_steps:
                errors, figures = run.zero_errors(), {}
                for _ in range(config.gradient_accumulation_steps):
                    batch = next(drawn)
                    with accelerator.accumulate(run.model):
                        if critic is None:
                            pass_errors, figures = backward(batch), _step(run)
                        else:
                            pass_errors, figures = _critic_pass(run, batch)
                        errors += pass_errors / config.gradient_accumulation_steps
                run.state.finish_step()
                bar.update()
                if run.compiled and not hidden and bar.n == bar.initial + 1:
                    tell_compiled(bar.start_t, "step")
                if is_logged(run.state.step, config.max_steps):
                    _log(run, errors, figures, bar)
                run.readings.end_step()
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
    """The student's output layer, if there is a critic."""
    readings: Readings
    """Gradient norms and log lines: late where the device can be left to skip an update that is not finite."""
    writer: CheckpointWriter
    compiled: bool
    """Whether the blocks are compiled, in the first step."""
    stopwatch: Stopwatch

    @property
    def draws_samples(self) -> bool:
        """Whether this process draws samples: the first one, or all if the student is divided over them."""
        return self.accelerator.is_main_process or self.config.shard

    def zero_errors(self) -> Tensor:
        """Zeros for the sum of the loss and of each step's error, (1 + s,)."""
        return torch.zeros(1 + self.state.student.num_steps, device=self.accelerator.device)


def _settings(
    student: Student, data: TrajectoryDataset, config: TrainingConfig, start: str | None, critic: Critic | None
) -> Settings:
    """What ``config.json`` holds, and what has to be equal for a run to be resumed."""
    settings: Settings = {
        "student": asdict(student.config),
        "training": asdict(config),
        "data": {"seed": data.manifest.seed, "num_trajectories": len(data), "draws": data.draws},
        "start": {"student": start},
    }
    frozen = {"base": weights_of(student.transformer)} if student.config.lora_rank else {}
    if critic is not None:
        settings[critic.OPTIONS] = asdict(critic.config)
        frozen[critic.NETWORK] = critic.network.teacher.weights
    return settings | ({"weights": frozen} if frozen else {})


def _start(
    student: Student,
    data: TrajectoryDataset,
    folder: Path,
    config: TrainingConfig,
    accelerator: Accelerator,
    critic: Critic | None,
) -> _Run:
    """Place and distribute the student, and restore the last checkpoint if there is one."""
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing(config.checkpoint_stride)
    if config.shard:  # block by block: no process puts the whole student onto its device
        shard(student, accelerator.device)
    else:
        student.to(accelerator.device)
    student.train()
    compiled = compiles(config.compile, accelerator.device, config.max_steps) and not config.shard
    if compiled:
        student.compile()
    checkpoint = _newest_checkpoint(folder, accelerator.is_main_process)
    kind = optimizer_kind(accelerator.device) if checkpoint is None else saved_kind(checkpoint)
    kind = kind if config.optimizer == "adamw" else "plain"  # torchao's does not skip what is not finite
    state = TrainingState(student, config, critic, kind)
    weights = step_weights(student.config.knots, student.config.target).to(accelerator.device)
    last_layer = None
    if critic is not None:
        critic.to(accelerator.device)
        last_layer = LastLayer(student)
    if checkpoint is not None:
        state.load(checkpoint)
    if accelerator.is_main_process:
        truncate_log(folder, state.step, config.max_steps)
    # A student that is already divided over the processes is not to be wrapped in DDP as well.
    model = accelerator.prepare_model(student, evaluation_mode=config.shard)
    optimizer = accelerator.prepare_optimizer(state.optimizer)
    readings = Readings(late=kind == "fused")
    aside = accelerator.device.type != "cpu" and accelerator.num_processes == 1
    writer = CheckpointWriter(folder / "checkpoints", config.keep_checkpoints, aside)
    told = (model, optimizer, weights, last_layer, readings, writer, compiled, Stopwatch())
    return _Run(state, data, folder, config, accelerator, *told)


def _newest_checkpoint(folder: Path, is_main_process: bool) -> Path | None:
    """The last whole checkpoint, which the first process chooses for all; None if there is none yet."""
    found = [str(checkpoints.newest(folder / "checkpoints") or "") if is_main_process else ""]
    broadcast_object_list(found)
    return Path(found[0]) if found[0] else None


def _estimate(run: _Run, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Run the student and compare it with the teacher.

    Returns:
        Estimates, (b, s, c, h, w); regression loss; and, detached, that loss and the error of each step, (1 + s,).
    """
    config = run.config
    options = (config.sequential, config.detach_history, batch.on_policy, config.through_steps)
    offload = offloaded() if config.offload_activations else nullcontext()
    with torch.set_grad_enabled(run.state.trains_student), offload:
        estimates = run.model(batch.inputs, batch.condition, *options)
        loss, step_errors = regression_loss(estimates, batch.targets, run.step_weights)
    return estimates, loss, torch.cat([loss.detach().view(1), step_errors.detach()])


def _backward(run: _Run, batch: Batch) -> Tensor:
    """Forward and backward pass of the regression; returns its loss and the error of each step, (1 + s,)."""
    _estimates, loss, errors = _estimate(run, batch)
    run.accelerator.backward(loss)
    return errors


def _critic_pass(run: _Run, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """A pass of the student and the critic, and their optimisers' steps.

    Returns:
        The regression loss and the error of each step, (1 + s,); and numbers for the log, still on the device.
    """
    estimates, regression, errors = _estimate(run, batch)
    figures: dict[str, Tensor] = {}
    if run.state.trains_student:  # not during the critic's warm-up
        loss, figures = _student_loss(run, batch, estimates, regression)
        run.accelerator.backward(loss)
        figures |= _step(run)
    return errors, figures | _update_critic(run, batch, estimates)


def _step(run: _Run) -> dict[str, Tensor]:
    """At the last pass of a step, clip the gradients and let the optimiser step; returns numbers for the log."""
    accelerator, state, figures = run.accelerator, run.state, dict[str, Tensor]()
    if accelerator.sync_gradients:
        norm = accelerator.clip_grad_norm_(state.parameters, run.config.max_grad_norm)
        state.skip_if_not_finite(norm)
        check = partial(state.watchdog.check_gradient, state.step + 1)
        run.readings.add([norm], lambda numbers: check(*numbers))  # the norm is the same on every process
        figures["gradient_norm"] = norm
    run.optimizer.step()
    run.optimizer.zero_grad()
    return figures


def _student_loss(run: _Run, batch: Batch, estimates: Tensor, regression: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The regression loss plus, with a critic, its weighted loss on the last step's estimates."""
    critic = run.state.critic
    if critic is None or run.last_layer is None:
        return regression, {}
    other = critic.student_loss(estimates[:, -1], batch.condition, batch.generator)
    done = run.state.step - run.state.warmup_steps
    weight = critic.weight(regression, other, run.last_layer.weight, done)
    loss = regression + weight * other
    return loss, {"g_loss": other.detach(), "g_weight": weight}


def _update_critic(run: _Run, batch: Batch, estimates: Tensor) -> dict[str, Tensor]:
    """A step of the critic, if there is one; returns numbers for the log, if this step is logged."""
    critic = run.state.critic
    if critic is None:
        return {}
    logged = is_logged(run.state.step + 1, run.config.max_steps)
    return critic.update(estimates[:, -1], batch.condition, batch.generator, logged)


def _log(run: _Run, errors: Tensor, figures: dict[str, Tensor], bar: tqdm) -> None:
    """Write a line of the log with means over the processes, and show the loss, once the numbers are read."""
    accelerator, step, rate = run.accelerator, run.state.step, float(run.state.scheduler.get_last_lr()[0])
    means = accelerator.reduce(errors, "mean")

    def write(numbers: list[float]) -> None:
        loss, step_errors = numbers[0], numbers[1 : len(means)]
        named = dict(zip(figures, numbers[len(means) :], strict=True))
        accelerator.log({"loss": loss, "learning_rate": rate} | named, step=step)
        if accelerator.is_main_process:
            append_log(run.folder, {"step": step, "loss": loss, "step_errors": step_errors} | named)
        bar.set_postfix(loss=f"{loss:.5f}")

    run.readings.add([*means, *figures.values()], write)


def _checkpoint(run: _Run) -> None:
    """Write a checkpoint; it counts as good if samples are diverse and the watchdog suspects nothing."""
    state = run.state
    run.readings.settle()  # no checkpoint follows a gradient that nobody has looked at
    if run.draws_samples:
        with state.averaged():
            diversity = _diversity(run)
        if diversity >= COLLAPSED and not state.watchdog.suspects:
            state.good_step = state.step
    state.save(run.writer)
    if run.accelerator.is_main_process:
        device, seconds = run.accelerator.device, run.stopwatch.lap() * run.accelerator.num_processes
        add_device_seconds(run.folder, device, seconds)


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
            track_picture(tracker, picture, state.step)


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
