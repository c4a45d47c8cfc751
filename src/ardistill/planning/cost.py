"""What a distillation costs before it starts: compute, memory, disk space and time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from ardistill.config import CostConfig
from ardistill.devices import precision, resolve_device, resolve_precision, synchronize
from ardistill.families import Family, class_name, family_of
from ardistill.files import read_json
from ardistill.planning.counting import count, guided_rows, make, stored_width
from ardistill.planning.fit import Fit, card_bytes, cheapest_fit, smallest_card
from ardistill.planning.memory import stages
from ardistill.teacher import find_source, read_transformer_config
from ardistill.trajectories import nested_indices

DIT_MODELS: dict[str, dict[str, Any]] = {
    f"DiT-{size}/{patch}": {
        "_class_name": "DiTTransformer2DModel",
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "patch_size": patch,
        "out_channels": 8,
    }
    for size, layers, width, heads in (("S", 12, 384, 6), ("B", 12, 768, 12), ("L", 24, 1024, 16), ("XL", 28, 1152, 16))
    for patch in (2, 4, 8)
}
"""The models of Peebles & Xie 2023, arXiv:2212.09748, Table 1, by name."""


@dataclass(frozen=True)
class Cost:
    """What recording, training and sampling take.

    MACs (multiply-accumulates) are in units of 1e9, memory and disk space in bytes, time in seconds.
    """

    macs_per_image: float
    """MACs of the student for one image."""
    macs_per_image_step_distillation: float
    """MACs for one image of a student without history in the same number of steps."""
    macs_per_image_teacher: float
    """MACs of the teacher's solver for one image; a guided step counts twice."""
    macs_per_training_step: float
    """Forward and backward of a batch, counted as three forwards (four with gradient checkpointing)."""
    parameters: int
    """Number of the student's parameters."""
    trained_parameters: int
    """Number of trained parameters; smaller than ``parameters`` with adapters."""
    memory: dict[str, int]
    """Memory per device of ``distill``: weights, gradients, optimizer, ema, activations, total."""
    stages: dict[str, int]
    """Memory per device of record, distill, finetune and sample; record and sample draw one image at a time."""
    bytes_per_trajectory: int
    """Disk space of one trajectory's states."""
    bytes_per_prompt: int
    """Disk space of one prompt's embeddings, stored once per distinct prompt; 0 for class labels."""
    bytes_on_disk: int
    """Disk space of all trajectories and prompts."""
    seconds: dict[str, float] | None = None
    """Seconds per_evaluation, of recording and of training, from timing one evaluation; None if no device was given."""
    fit: Fit | None = None
    """Options with which ``distill`` fits on a card; None if no card was named."""


def transformer_config(name: str) -> dict[str, Any]:
    """Read the config of a teacher's transformer.

    Args:
        name: A name in `DIT_MODELS`, a config.json, a folder, or a Hub id, of which only the config
            is downloaded.

    Raises:
        ValueError: Nothing is found under this name, or the file is no transformer's config.
    """
    if name in DIT_MODELS:
        return DIT_MODELS[name]
    if Path(name).suffix == ".json" and Path(name).is_file():
        found = read_json(Path(name))
        if not isinstance(found, dict) or "_class_name" not in found:
            raise ValueError(f"{name}: expected the config.json of a diffusers transformer, with its _class_name")
        return found
    try:
        source = find_source(name, parts=["transformer/config.json"])
        return read_transformer_config(source.folder, source.name)
    except ValueError as error:
        raise ValueError(
            f"expected one of {', '.join(DIT_MODELS)}, a diffusers folder, a config.json or a Hub id, got {name!r}: "
            f"{error}"
        ) from error


def cost(config: CostConfig) -> Cost:
    """Count what recording, training and sampling take.

    Args:
        config: What is to be counted. With a device, one evaluation of the teacher is timed there.

    Raises:
        ValueError: The teacher or the device is unknown, or a number does not fit the teacher.
    """
    device = None if config.device is None else resolve_device(config.device)  # refused before anything is counted
    config = _settled(config, device or resolve_device())
    card = None if config.fit is None else card_bytes(config.fit)
    facts = transformer_config(config.teacher)
    family = family_of(class_name(facts))
    nested_indices(config.solver_steps, config.num_steps)
    counts = count(facts, family, config)
    parts = stages(counts.memory, config)
    trajectories = config.batch_size * config.gradient_accumulation_steps
    passes = 4 if config.gradient_checkpointing else 3
    states = (2 * config.num_steps + 1) * prod(counts.latent_shape) * stored_width(config) + 8
    num_prompts = min(config.num_prompts, config.num_trajectories)  # others are not encoded
    found = Cost(
        macs_per_image=counts.macs / 1e9,
        macs_per_image_step_distillation=counts.macs_per_evaluation * config.num_steps / 1e9,
        macs_per_image_teacher=counts.macs_per_evaluation * config.solver_steps * guided_rows(config) / 1e9,
        macs_per_training_step=passes * counts.macs * trajectories / 1e9,
        parameters=counts.memory.weights.total,
        trained_parameters=counts.memory.weights.trained,
        memory=parts["distill"] | {"total": sum(parts["distill"].values())},
        stages={name: sum(x.values()) for name, x in parts.items()},
        bytes_per_trajectory=states,
        bytes_per_prompt=counts.bytes_per_prompt,
        bytes_on_disk=states * config.num_trajectories + counts.bytes_per_prompt * num_prompts,
        fit=None
        if card is None
        else cheapest_fit(counts.memory, lambda x: count(facts, family, x).memory, config, card),
    )
    if device is None:
        return found
    rate = _measure(facts, family, counts.latent_shape, config, device)
    seconds = {
        "per_evaluation": rate,
        "recording": rate * config.solver_steps * guided_rows(config) * config.num_trajectories / config.num_devices,
        "training": rate * found.macs_per_training_step / (counts.macs_per_evaluation / 1e9) * config.max_steps,
    }
    return replace(found, seconds=seconds)


def _settled(config: CostConfig, device: torch.device) -> CostConfig:
    """The configuration with what is ``auto`` in it chosen for a device, or for the card that it is to fit on."""
    on_card = config.fit is not None and config.mixed_precision == "auto"
    chosen = "bf16" if on_card else resolve_precision(config.mixed_precision, device)
    weights = ("bfloat16" if chosen == "bf16" else "float32") if config.weights == "auto" else config.weights
    return replace(config, mixed_precision=chosen, weights=weights)


def _measure(
    facts: dict[str, Any], family: Family, shape: tuple[int, ...], config: CostConfig, device: torch.device
) -> float:
    """Seconds of one evaluation of one sample with random weights: the best of three after a warm-up."""
    transformer = make(facts).to(device).eval()
    example = family.example_condition(transformer, 1, config.text_tokens)
    condition = {name: value.to(device) for name, value in example.items()}
    noise, times = torch.zeros(1, *shape, device=device), []
    with torch.no_grad(), precision(config.mixed_precision, transformer):
        for _ in range(4):
            began = time.perf_counter()
            family.call(transformer, noise, torch.full((1,), 500.0, device=device), condition)
            synchronize(device)
            times.append(time.perf_counter() - began)
    return min(times[1:])


def describe(cost: Cost, config: CostConfig) -> str:
    """Write a cost as lines of text."""
    gib = {name: f"{size / 2**30:,.2f} GiB" for name, size in cost.memory.items()}
    share = cost.macs_per_image / cost.macs_per_image_teacher
    more = cost.macs_per_image / cost.macs_per_image_step_distillation - 1
    guided = "guided " if config.guidance_scale > 1 else ""
    rows = {
        "sampling": f"{cost.macs_per_image:,.2f} G MACs an image, {more:+.2%} against step distillation",
        "teacher": f"{cost.macs_per_image_teacher:,.0f} G MACs an image in {config.solver_steps} {guided}steps; "
        f"the student takes {share:.1%} of it",
        "training": f"{cost.macs_per_training_step:,.0f} G MACs a step of "
        f"{config.batch_size * config.gradient_accumulation_steps} trajectories",
        "memory": f"{gib['total']} per device: " + ", ".join(f"{k} {v}" for k, v in gib.items() if k != "total"),
        "fits on": ", ".join(f"{name} {smallest_card(size)}" for name, size in cost.stages.items())
        + ", without text encoders and VAE",
        "disk": f"{cost.bytes_per_trajectory:,} bytes a trajectory, {cost.bytes_on_disk / 1e9:,.1f} GB for "
        f"{config.num_trajectories:,} of them",
    }
    if cost.trained_parameters < cost.parameters:
        rows["adapters"] = f"{cost.trained_parameters:,} trained parameters beside the teacher's, which are shared"
    if cost.fit is not None:
        rows["fit"] = cost.fit.text(str(config.fit))
    if cost.bytes_per_prompt:
        num_prompts = min(config.num_prompts, config.num_trajectories)
        rows["prompts"] = f"{cost.bytes_per_prompt:,} bytes each, stored once ({num_prompts:,} of them are used)"
    if cost.seconds is not None:
        recording, training = (cost.seconds[name] / 3600 for name in ("recording", "training"))
        rows["time"] = (
            f"recording {recording:,.1f} h, {config.max_steps:,} steps of training {training:,.1f} h on this device "
            f"({1000 * cost.seconds['per_evaluation']:,.1f} ms an evaluation at batch 1)"
        )
    return "\n".join(f"{name:<10}{text}" for name, text in rows.items())
