"""One visible loop: regression of every step onto the teacher's trajectory, then, if asked, against a discriminator."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, patch_environment, send_to_device
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from filelock import FileLock, Timeout
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from ardistill.config import TrainingConfig
from ardistill.core.heads import StepLinear
from ardistill.devices import Device, device_name, device_of, resolve_device
from ardistill.errors import version
from ardistill.files import check_folder, checkpoints, read_json, sealed_json, write_whole
from ardistill.progress import bar as progress_bar
from ardistill.student.sampling import sample
from ardistill.student.student import Student, StudentConfig
from ardistill.training.adversary import Adversary
from ardistill.training.fsdp import shard
from ardistill.training.losses import inputs_and_targets, regression_loss, step_weights
from ardistill.training.watchdog import COLLAPSED, TrainingDivergedError, Watchdog
from ardistill.trajectories import TrajectoryDataset, same_states

__all__ = ["TrainingDivergedError", "distill", "environment"]

_LOCK = ".lock"
_PATIENCE = 20.0
"""Seconds: a process that was just killed takes a moment to be gone, and an arm of a study that is done to be read."""
_LOG = logging.getLogger(__name__)
_FREE = {"checkpoint_every", "keep_checkpoints", "shard", "tracker"}
"""Options of training that a run may be resumed with otherwise: its weights do not depend on them, but for rounding."""


def distill(
    student: Student,
    data: TrajectoryDataset,
    folder: str | Path,
    config: TrainingConfig,
    *,
    start: str | None = None,
    adversary: Adversary | None = None,
    validate: Callable[[Student, int], np.ndarray | None] | None = None,
    progress: bool = True,
) -> Student:
    """Train a student; the same call again resumes from the last whole checkpoint, and with a larger ``max_steps`` goes
    on from its end, where no step depends on how many there are.

    Args:
        student: Trained in place: one process trains it where it is, several launched by accelerate on their devices.
        data: Trajectories of its teacher, at its knots.
        folder: Run folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``; at the end
            ``student/`` (EMA) and, of a student with adapters, ``adapters/``. Of several machines, one that all see.
        config: How.
        start: Where the student was read from, if it is not its teacher's copy; kept in ``config.json``.
        adversary: Adds the loss of a discriminator on the last step's estimates (R+D); trained along.
        validate: Called with the student (EMA) and the number of steps done, at every checkpoint; a picture that it
            returns, (height, width, 3) or (height, width, 4) bytes, goes to the tracker.
        progress: Show a bar with loss and remaining time.

    Returns:
        The student with its EMA weights, in evaluation mode; still divided over the processes if ``shard`` says so.

    Raises:
        ValueError: The data's times or teacher are not the student's, the folder holds another run or no whole
            checkpoint or is being trained in, or the launch does not go with the configuration.
        TrainingDivergedError: Loss or gradients are no numbers any more; a ``ValueError``, too.
    """
    check_run_folder(folder)
    folder = Path(folder)
    _check_data(student, data)
    _check_names(config)
    if adversary is not None and adversary.config.adaptive and student.config.lora_rank:
        raise ValueError(
            "the adaptive weight compares gradients of the last layer, which adapters leave as it is: set "
            "--adversarial.adaptive false"
        )
    facts = {
        "student": asdict(student.config),
        "training": asdict(config),
        "data": {"seed": data.manifest.seed, "num_trajectories": len(data), "draws": data.draws},
        "start": {"student": start},
    }
    if adversary is not None:
        facts["adversarial"] = asdict(adversary.config)
    accelerator = _make_accelerator(device_of(student), config, folder)
    _check_launch(accelerator, config)
    with _one_at_a_time(folder) if accelerator.is_main_process else nullcontext():
        with accelerator.main_process_first():  # the others find what the first one wrote
            _claim_folder(folder, facts, accelerator.device)
        return _train(student, data, folder, config, accelerator, adversary, validate, progress)


def _train(
    student: Student,
    data: TrajectoryDataset,
    folder: Path,
    config: TrainingConfig,
    accelerator: Accelerator,
    adversary: Adversary | None,
    validate: Callable[[Student, int], np.ndarray | None] | None,
    progress: bool,
) -> Student:
    first_process, device = accelerator.is_main_process, accelerator.device
    if config.tracker is not None:
        accelerator.init_trackers("metrics")
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    student.to(device).train()
    if config.shard:
        shard(student, device)
    names, parameters = zip(*[(name, p) for name, p in student.named_parameters() if p.requires_grad], strict=True)
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
    used: dict[str, torch.Tensor] = {}
    if adversary is not None:
        adversary.to(device)
        last = student.transformer.get_submodule(student.family.head[-1])
        watched = last.register_forward_hook(lambda module, *_: used.update(last=_weight(module)))

    def state(step: int) -> dict[str, Any]:
        """All that the next step depends on. Frozen weights are the teacher's, and an optimiser starts empty."""
        frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
        tree = {
            "step": step,
            "good": good,
            "watchdog": watchdog.state_dict(),
            "made_of": {"student": asdict(student.config), "transformer": student.described},
            "student": {name: x for name, x in student.state_dict().items() if name not in frozen},
            "optimizer": get_optimizer_state_dict(student, optimizer) if step > alone else {},
            "scheduler": scheduler.state_dict(),
            "ema": ema.state_dict() | {"shadow_params": dict(zip(names, ema.shadow_params, strict=True))},
        }
        return tree if adversary is None else tree | {"adversary": adversary.state_dict()}

    @contextmanager
    def averaged() -> Iterator[None]:
        """The student has the EMA's weights meanwhile."""
        ema.store(parameters)
        ema.copy_to(parameters)
        student.eval()
        try:
            yield
        finally:
            ema.restore(parameters)
            student.train()

    watchdog = Watchdog()
    first = good = 0  # good: the last checkpoint that nothing looked wrong at
    saved_at = [str(checkpoints.newest(folder / "checkpoints") or "") if first_process else ""]
    broadcast_object_list(saved_at)  # of several processes one looks, and all read the same
    if saved_at[0]:
        path = Path(saved_at[0])
        saved = checkpoints.load(path, state(checkpoints.step_of(path)))  # fills the student's and the EMA's weights
        if saved["optimizer"]:
            set_optimizer_state_dict(student, optimizer, saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        ema.load_state_dict(saved["ema"] | {"shadow_params": list(saved["ema"]["shadow_params"].values())})
        if adversary is not None:
            adversary.load_state_dict(saved["adversary"])
        first = saved["step"]
        good = saved.get("good", first)  # older ones do not say, nor what the watchdog has seen
        if "watchdog" in saved:
            watchdog.load_state_dict(saved["watchdog"])
    if first_process:
        _forget_after(folder / "metrics.jsonl", first, config.max_steps)
    # Not as accelerate would distribute it (DDP) if it is distributed already.
    model = accelerator.prepare_model(student, evaluation_mode=config.shard)
    stepper = accelerator.prepare_optimizer(optimizer)

    bar = progress_bar(total=config.max_steps, initial=first, desc="distil", disable=not (progress and first_process))
    for step in range(first, config.max_steps):
        seen = torch.zeros(1 + student.num_steps, device=device)  # the loss, and the error of each step
        for part in range(config.gradient_accumulation_steps):
            # Rows follow from (seed, step) alone: there is no data position to lose. They differ on every process.
            passes = step * config.gradient_accumulation_steps + part
            drawn = passes * accelerator.num_processes + accelerator.process_index
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + drawn)
            torch.manual_seed(config.seed * 1_000_003 + drawn)  # of whatever a model may drop out
            batch = send_to_device(data.batch(data.draw(config.batch_size, generator)), device)
            share = {"teacher": 0.0, "student": 1.0, "mixed": config.student_share * step / config.max_steps}
            on_policy = float(torch.rand((), generator=generator, device="cpu")) < share[config.inputs]
            if config.shard and config.inputs == "mixed":
                # Weights are gathered anew for each step: one process that takes another way would wait for ever.
                kind = [on_policy]
                broadcast_object_list(kind)
                on_policy = kind[0]
            inputs, targets = inputs_and_targets(batch["states"], batch["denoised"], data.knots, student.config.target)
            more: dict[str, float] = {}
            with accelerator.accumulate(model):
                how = (config.sequential, config.detach_history, on_policy, config.through_steps)
                with torch.set_grad_enabled(step >= alone):
                    estimates = model(inputs, batch["condition"], *how)
                    loss, errors = regression_loss(estimates, targets, weights)
                seen += torch.cat([loss.detach().view(1), errors.detach()]) / config.gradient_accumulation_steps
                if step >= alone:
                    total = loss
                    if adversary is not None:
                        drawn_as_real = adversary.generator_loss(estimates[:, -1], batch["condition"], generator)
                        weight = adversary.weight(loss, drawn_as_real, used["last"])
                        total = loss + weight * drawn_as_real
                        more = {"g_loss": float(drawn_as_real.detach()), "g_weight": float(weight)}
                    accelerator.backward(total)
                    if accelerator.sync_gradients:
                        norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
                        watchdog.gradient(step + 1, norm)  # the same on every process
                        more["gradient_norm"] = norm
                    stepper.step()
                    stepper.zero_grad()
                if adversary is not None:
                    more |= adversary.update(estimates[:, -1], batch["condition"], generator)
        if step >= alone:
            scheduler.step()
            ema.step(parameters)
        done = step + 1
        bar.update()
        if _is_logged(done, config.max_steps):
            value, *each = accelerator.reduce(seen, "mean").tolist()
            bar.set_postfix(loss=f"{value:.5f}")
            line = {"step": done, "loss": value, "step_errors": each} | more
            accelerator.log({"loss": value, "learning_rate": scheduler.get_last_lr()[0]} | more, step=done)
            if first_process:
                with open(folder / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
        if done % config.checkpoint_every == 0 or done == config.max_steps:
            shows = first_process or config.shard  # divided, the student draws only on all processes at once
            if shows:
                with averaged():
                    diversity = _diversity(student, data, done, watchdog, accelerator)
                if diversity >= COLLAPSED and not watchdog.suspects:
                    good = done
            checkpoints.save(folder / "checkpoints", done, state(done), config.keep_checkpoints, good)
            if shows and validate is not None:
                with averaged():
                    _show(validate(student, done), done, accelerator)
    bar.close()
    if adversary is not None:
        watched.remove()
    for tracker in accelerator.trackers:  # not accelerator.end_training: it ends the group of processes, too
        tracker.finish()
    ema.copy_to(parameters)
    student.eval()
    student.save_pretrained(folder / "student")
    if student.config.lora_rank:
        student.save_adapters(folder / "adapters")
    accelerator.wait_for_everyone()
    return student


def _diversity(
    student: Student, data: TrajectoryDataset, step: int, watchdog: Watchdog, accelerator: Accelerator
) -> float:
    """How diverse samples are, 1 as the teacher's; 1, too, where there is one trajectory alone."""
    rows = data.buckets[0][:16]
    if len(rows) < 2:
        return 1.0
    states, _denoised, condition = send_to_device(data.stacked(rows), accelerator.device)
    drawn = sample(student, states[:, 0], condition)[:, -1]
    found = watchdog.diversity(step, drawn, states[:, -1])
    accelerator.log({"diversity": found}, step=step)
    return found


def _show(picture: np.ndarray | None, step: int, accelerator: Accelerator) -> None:
    """To whatever tracks the run."""
    for tracker in accelerator.trackers:
        if picture is not None:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": picture[None]}, step=step, **layout)


def _weight(last: Any) -> torch.Tensor:
    """Of the layer that emits, as the pass has it: where it is divided, whole for that time, and another tensor.

    Of a layer with a weight per step those behind the first: what is taken for real is the last step's.
    """
    return last.later_weight if isinstance(last, StepLinear) and last.num_steps > 1 else last.weight


def _make_accelerator(device: torch.device, config: TrainingConfig, folder: Path) -> Accelerator:
    """Accelerate's state for one training: several processes train on the devices that it gives them, one process on
    the student's.
    """
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if alone and PartialState._shared_state:
        # An earlier training of this process, or its user, made the state, which then serves every Accelerator.
        same_device = (PartialState().device.type, PartialState().device.index or 0) == (device.type, device.index or 0)
        precision = AcceleratorState._shared_state.get("_mixed_precision", config.mixed_precision)
        if not same_device or precision != config.mixed_precision:
            AcceleratorState._reset_state(reset_partial_state=True)
    with patch_environment(accelerate_torch_device=str(device)) if alone else nullcontext():
        return Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.tracker,
            project_dir=str(folder),
        )


def _check_launch(accelerator: Accelerator, config: TrainingConfig) -> None:
    plugins = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
    for variable, name in plugins.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ValueError(
                f"expected a plain accelerate launch, this one asks for {name}: launch without it, and divide weights "
                "and optimiser over the processes with --training.shard true"
            )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:  # so torchrun does where there is no GPU: each would train by itself
        raise ValueError(
            f"{launched} processes were launched, accelerate sees {accelerator.num_processes}: on a CPU set "
            "ACCELERATE_USE_CPU=true for torchrun and accelerate launch --multi_gpu"
        )
    if config.shard and accelerator.num_processes < 2:
        raise ValueError("shard divides over processes, this is one: use accelerate launch, or leave shard out")


def _check_data(student: Student, data: TrajectoryDataset) -> None:
    ours, theirs = student.config, data.manifest
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"expected weights in float32, in which small updates are not lost, got {name} in {parameter.dtype}; "
                "train student.float(), with mixed_precision bf16 for the speed of 16 bits"
            )
    if not same_states(ours.knots, data.knots):
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


def _check_names(config: TrainingConfig) -> None:
    trackers = [str(tracker) for tracker in get_available_trackers()]
    for what, value, known in (
        ("lr_scheduler", config.lr_scheduler, [kind.value for kind in SchedulerType]),
        ("tracker", config.tracker, [None, *trackers]),
    ):
        if value not in known:
            names = ", ".join("null" if x is None else x for x in known)
            raise ValueError(f"{what} {value!r} is unknown or not installed; known: {names}")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """A second training of the same run would tear the first one's log and checkpoints. Released by a kill, too."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{folder} is being trained in by another process ({error}); wait for it or choose a new folder; if it is "
            f"gone, delete {folder / _LOCK}"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _LOG.warning("%s cannot be locked (%s): see to it that one process alone trains there", folder, error.strerror)
    try:
        yield
    finally:
        lock.release()


def check_run_folder(folder: str | Path) -> None:
    """See that a folder can hold a run, before anything is written there.

    Raises:
        ValueError: It cannot be written, or holds what is no run.
    """
    check_folder(folder)
    there = {x.name for x in Path(folder).iterdir()} if Path(folder).is_dir() else set()
    if "config.json" not in there and any(name != _LOCK and not name.endswith(".tmp") for name in there):
        raise ValueError(f"expected {folder} to be empty or to hold this run; choose a new folder")


def _claim_folder(folder: Path, facts: dict[str, Any], device: torch.device) -> None:
    """Write ``config.json`` and ``environment.json``, or see that the folder is this very run's."""
    facts = json.loads(json.dumps(facts))
    path = folder / "config.json"
    if path.exists():
        before = read_json(path)
        try:  # where it is older than an option, that had its default
            before["student"] = json.loads(json.dumps(asdict(StudentConfig.from_dict(before["student"]))))
            before["training"] = asdict(TrainingConfig()) | before.get("training", {})
            before["data"] = {"draws": "rows"} | before.get("data", {})
            before.setdefault("start", facts["start"])
            steps = before["training"]["max_steps"]
            whether = _can_change_steps(folder, steps, facts["training"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected the settings of a run; restore it, or choose a new folder") from error
        differing = [
            f"{part}.{name} is {before.get(part, {}).get(name)!r} there, {value!r} asked for"
            for part, values in facts.items()
            for name, value in values.items()
            if before.get(part, {}).get(name) != value and not (part == "training" and name in {*_FREE, "max_steps"})
        ]
        differing += [f"training.max_steps is {steps} there, {whether}"] if whether else []
        if differing:
            raise ValueError(
                f"{folder} holds another run ({'; '.join(differing)}); choose a new folder, where --start {folder} (of "
                f"finetune: --student {folder}) goes on from it, or repeat its own settings"
            )
        if steps != facts["training"]["max_steps"]:
            changed = read_json(path)
            changed.setdefault("training", {})["max_steps"] = facts["training"]["max_steps"]
            write_whole(path, sealed_json(changed))
        _write_environment(folder, device)
        return
    check_run_folder(folder)  # once more: another process may have used it meanwhile
    write_whole(path, sealed_json(facts))
    _write_environment(folder, device)


def _can_change_steps(folder: Path, steps: int, training: dict[str, Any]) -> str:
    """Why a run of ``steps`` steps cannot go on as one of ``training``'s; empty if it can, or if they are the same.

    It can where no step depends on how many there are: then it ends as a run that had as many from the start.
    """
    asked, done = training["max_steps"], checkpoints.last_step(folder / "checkpoints")
    if asked == steps:
        return ""
    if training["lr_scheduler"] not in ("constant", "constant_with_warmup"):
        return f"{asked} asked for, and the learning rate of lr_scheduler {training['lr_scheduler']} depends on it"
    if training["inputs"] == "mixed" and training["student_share"]:
        return f"{asked} asked for, and the share of the student's inputs (mixed) depends on it"
    if asked < done:
        return f"{asked} asked for, and {done} are done: ask for as many or more, or take one of its checkpoints"
    return ""


def _write_environment(folder: Path, device: torch.device) -> None:
    if not (folder / "environment.json").exists():
        write_whole(folder / "environment.json", json.dumps(environment(device), indent=1).encode())


def _is_logged(step: float, max_steps: int) -> bool:
    """Whether a line of the log is written after a step: each tenth, and the last one."""
    return step % 10 == 0 or step == max_steps


def _forget_after(log: Path, step: int, max_steps: int) -> None:
    """Drop what was logged after the checkpoint, which is run again, lines that cannot be read, which a kill cut, and
    the last one of a run that has more steps now.
    """
    if log.exists():
        lines = [(_logged_at(line), line) for line in log.read_bytes().splitlines(True)]
        kept = [line for at, line in lines if at <= step and _is_logged(at, max_steps)]
        write_whole(log, b"".join(kept))


def _logged_at(line: bytes) -> float:
    """Step of a line of the log; infinite of what is none."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (KeyError, TypeError, ValueError):
        return math.inf


def environment(device: Device = None) -> dict[str, Any]:
    """What a figure depends on besides the configuration: versions, git commit of the working directory, device.

    Args:
        device: That the figure was measured on; the best device there is if not given.
    """
    packages = ("ardistill", "torch", "diffusers", "accelerate", "numpy")
    commit = ""
    with suppress(OSError):  # there may be no git
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = asked.stdout.strip()
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "git_commit": commit or None,
        "platform": platform.platform(),
        "device": device_name(resolve_device(device)),
        "threads": torch.get_num_threads(),
    }
