"""Checks before a training starts, and accelerate's state for it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env, patch_environment
from diffusers.optimization import SchedulerType

from ardistill.config import TrainingConfig
from ardistill.devices import best_device, resolve_precision, resolve_weights
from ardistill.student import Student, check_trainable
from ardistill.teacher import check_same_teacher
from ardistill.training.critic import Critic
from ardistill.training.run_folder import stored_precision, stored_weights
from ardistill.training.trackers import check_tracker
from ardistill.trajectories import Manifest, TrajectoryDataset, same_states


def check_data(student: Student, data: TrajectoryDataset, shard: bool = False) -> None:
    """Check that a student can be trained on these trajectories.

    Args:
        student: The student.
        data: The trajectories.
        shard: Whether its weights are divided over processes, each of which can read its part.

    Raises:
        ValueError: Its weights are in files that will not be read, trained weights are in 16 bits, or knots, teacher or
            guidance differ from the student's.
    """
    ours, theirs = student.config, data.manifest
    for name, parameter in student.named_parameters():
        if parameter.is_meta and not shard:
            raise ValueError(
                f"expected a student with its weights, {name} is in its teacher's files (in_parts); train it with "
                "shard in several processes, or load the teacher without in_parts"
            )
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"expected weights in float32, because 16 bits lose small updates, got {name} in {parameter.dtype}; "
                "train student.float(), with mixed_precision bf16 for the speed of 16 bits"
            )
    if not same_states(ours.knots, data.knots):
        raise ValueError("the recorded times are not the student's knots; make the student from the data's knots")
    check_same_teacher("the trajectories", ours, theirs, "record the student's teacher")
    if ours.fingerprint and ours.guidance_range != theirs.guidance_range:
        raise ValueError(
            f"the student says guidance {ours.guidance_range}, its trajectories have {theirs.guidance_range}; "
            "make the student from the data's manifest"
        )


def check_critic(student: Student, critic: Critic | None) -> None:
    """Check that the critic's loss can be weighted as configured.

    Raises:
        ValueError: The weight is adaptive and the student has adapters, so that its last layer is not trained.
    """
    if critic is not None and critic.config.adaptive and student.config.lora_rank:
        raise ValueError(
            "the adaptive weight compares gradients of the last layer, which adapters do not train: set "
            f"--{critic.OPTIONS}.adaptive false"
        )


def check_schedule_and_tracker(config: TrainingConfig) -> None:
    """Check that diffusers knows the learning rate schedule and accelerate the tracker.

    Raises:
        ValueError: The learning rate schedule or the tracker is unknown, or the tracker is not installed.
    """
    schedules = [kind.value for kind in SchedulerType]
    if config.lr_scheduler not in schedules:
        raise ValueError(f"lr_scheduler {config.lr_scheduler!r} is unknown; known: {', '.join(schedules)}")
    check_tracker(config.tracker)


def settled(config: TrainingConfig, folder: Path, device: torch.device) -> TrainingConfig:
    """The configuration with a precision in place of ``auto``: that of the run in the folder, else the device's.

    A resumed run is the same run only in its own precision, whatever device it goes on with.

    Args:
        config: Options of the training.
        folder: Run folder.
        device: Device of the student, where a single process trains.

    Raises:
        ValueError: The device cannot compute in that precision, is a CPU with activations to be offloaded, or the
            folder's ``config.json`` is damaged.
    """
    where = device if int(os.environ.get("WORLD_SIZE", 1)) == 1 else best_device()
    if config.offload_activations and where.type == "cpu":
        raise ValueError("offload_activations needs a device with memory of its own; on a CPU leave it out")
    stored = stored_precision(folder) if config.mixed_precision == "auto" else None
    return replace(config, mixed_precision=resolve_precision(stored or config.mixed_precision, where))


def base_weights(
    weights: str, folder: str | Path, lora_rank: int, device: torch.device, manifest: Manifest | None = None
) -> str:
    """The type of weights to load a student's teacher in, before anything is loaded.

    Args:
        weights: As for ``Teacher.from_pretrained``. ``auto`` is float32 where all weights are trained, the recording's
            type where the teacher solves online, that of the run in the folder where it is resumed, and else what suits
            the device.
        folder: Run folder.
        lora_rank: Rank of the adapters; 0 trains all weights.
        device: Device of the training.
        manifest: The recording, if the teacher solves its trajectories online.

    Raises:
        ValueError: All weights of a quantised teacher would be trained, or the device lacks this type of weights.
    """
    if weights == "auto" and manifest is not None:
        weights = manifest.weights
    elif weights == "auto":
        weights = (stored_weights(Path(folder), "base") or weights) if lora_rank else "float32"
    check_trainable(weights, lora_rank)
    return resolve_weights(weights, device)


def make_accelerator(device: torch.device, config: TrainingConfig, folder: Path) -> Accelerator:
    """Make accelerate's state for one training.

    Args:
        device: Device of the student, where a single process trains; each of several processes gets its device from
            accelerate.
        config: Precision, gradient accumulation and tracker.
        folder: Run folder, where trackers write.
    """
    single = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if single and PartialState._shared_state:
        # All Accelerators of a process share one state, which an earlier training or the caller may have made.
        same_device = (PartialState().device.type, PartialState().device.index or 0) == (device.type, device.index or 0)
        precision = AcceleratorState._shared_state.get("_mixed_precision", config.mixed_precision)
        if not same_device or precision != config.mixed_precision:
            AcceleratorState._reset_state(reset_partial_state=True)
    with patch_environment(accelerate_torch_device=str(device)) if single else nullcontext():
        return Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.tracker,
            project_dir=str(folder),
        )


def reads_in_parts(config: TrainingConfig, weights: str = "auto") -> bool:
    """Whether this is one of several processes that divide the weights: each then reads its part of the teacher alone.

    Connects the processes.

    Args:
        config: Tells whether the weights are divided.
        weights: Type of the teacher's weights that was asked for.

    Raises:
        ValueError: The weights are to be divided and quantised; further see `check_launch`.
    """
    if not config.shard or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return False
    check_divisible(weights)
    check_launch(PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")), config)  # as Accelerator makes it
    return True


def check_divisible(weights: str) -> None:
    """Refuse to divide quantised weights over processes.

    Raises:
        ValueError: They are quantised.
    """
    if weights in ("int8", "nf4"):
        raise ValueError(
            f"expected weights float32 or bfloat16 to divide over processes (shard), got {weights}; choose --weights "
            "bfloat16, or leave --training.shard out"
        )


def check_launch(accelerator: Accelerator | PartialState, config: TrainingConfig) -> None:
    """Check that the processes were launched in a way that suits the configuration.

    Args:
        accelerator: Accelerate's state of the processes.
        config: Tells whether the weights are divided.

    Raises:
        ValueError: The launch asks for accelerate's FSDP or DeepSpeed, accelerate does not see all processes, or
            ``shard`` is set for a single process.
    """
    plugins = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
    for variable, name in plugins.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ValueError(
                f"expected a plain accelerate launch, this one asks for {name}: launch without it, and divide weights "
                "and optimiser over the processes with --training.shard true"
            )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:  # torchrun on a machine without a GPU: each process would train alone
        raise ValueError(
            f"{launched} processes were launched, accelerate sees {accelerator.num_processes}: on a CPU set "
            "ACCELERATE_USE_CPU=true for torchrun and accelerate launch --multi_gpu"
        )
    if config.shard and accelerator.num_processes < 2:
        raise ValueError("shard divides over processes, this is one: use accelerate launch, or leave shard out")
