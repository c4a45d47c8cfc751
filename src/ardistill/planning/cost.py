"""Estimates what a distillation costs before it starts, by counting on the real modules without their weights.

Modules are made of fake tensors (shapes without storage), so that a model of any size is counted on any machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from ardistill.config import CostConfig
from ardistill.core.knots import Knots
from ardistill.devices import precision, resolve_device, resolve_precision, synchronize
from ardistill.evaluation.cost import count_macs
from ardistill.families import Family, class_name, family_of, transformer_class
from ardistill.files import read_json
from ardistill.student import Student, StudentConfig
from ardistill.student.lora import add_adapters
from ardistill.student.sample import sample
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
    """Memory per device while training: weights, gradients, optimizer, ema, activations, total."""
    bytes_per_trajectory: int
    """Disk space of one trajectory's states."""
    bytes_per_prompt: int
    """Disk space of one prompt's embeddings, stored once per distinct prompt; 0 for class labels."""
    bytes_on_disk: int
    """Disk space of all trajectories and prompts."""
    seconds: dict[str, float] | None = None
    """Seconds per_evaluation, of recording and of training, from timing one evaluation; None if no device was given."""


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


def _make(facts: dict[str, Any]) -> Any:
    return transformer_class(facts).from_config(facts)


def example_knots(num_steps: int) -> Knots:
    """Evenly spaced knots for a student whose cost is counted; the counts do not depend on their values."""
    levels = [0.1 + 0.9 * i / num_steps for i in range(num_steps + 1)]
    times = tuple(1000 * (1 - i / num_steps) - 1 for i in range(num_steps))
    return Knots("epsilon", times, tuple(levels), tuple((1 - a * a) ** 0.5 for a in levels))


def _saved_bytes(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Bytes that autograd keeps for the backward pass; each storage counts once, parameters do not count."""
    known = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, tuple[Any, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(size for _, size in kept.values())


class _FullPrompts(TorchFunctionMode):
    """Tells a model that reads the lengths of its prompts (Lumina2) that all have the full length."""

    def __init__(self, text_tokens: int) -> None:
        super().__init__()
        self.text_tokens = text_tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item and args[0].dtype == torch.int64:
            return self.text_tokens
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _fake(name: str, text_tokens: int) -> Iterator[None]:
    """Within this context, tensors have shapes but no values.

    Raises:
        ValueError: The model ``name`` needs values of its inputs.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _FullPrompts(text_tokens):
            yield
    except DataDependentOutputException as error:
        raise ValueError(
            f"{name} asks for values of its inputs as it runs, so its cost cannot be counted without its weights"
        ) from error


@dataclass(frozen=True)
class _Counts:
    """What is counted on modules of fake tensors. MACs are not in units of 1e9 here."""

    macs: float
    """MACs of the student for one image."""
    macs_without_history: float
    """MACs for one image of a student without history in the same number of steps."""
    parameters: int
    trained_parameters: int
    activations: int
    """Bytes that a training step keeps for its backward pass."""
    latent_shape: tuple[int, ...]
    """Shape of one sample, (c, h, w)."""
    bytes_per_prompt: int


def cost(config: CostConfig) -> Cost:
    """Count what recording, training and sampling take.

    Args:
        config: What is to be counted. With a device, one evaluation of the teacher is timed there.

    Raises:
        ValueError: The teacher or the device is unknown, or a number does not fit the teacher.
    """
    device = None if config.device is None else resolve_device(config.device)  # refused before anything is counted
    config = replace(config, mixed_precision=resolve_precision(config.mixed_precision, device or resolve_device()))
    facts = transformer_config(config.teacher)
    family = family_of(class_name(facts))
    nested_indices(config.solver_steps, config.num_steps)
    counts = _count(facts, family, config)
    memory = _memory(counts, config)
    macs_per_evaluation = counts.macs_without_history / config.num_steps
    passes = 4 if config.gradient_checkpointing else 3
    states = (2 * config.num_steps + 1) * prod(counts.latent_shape) * _width(config) + 8
    num_prompts = min(config.num_prompts, config.num_trajectories)  # others are not encoded
    found = Cost(
        macs_per_image=counts.macs / 1e9,
        macs_per_image_step_distillation=counts.macs_without_history / 1e9,
        macs_per_image_teacher=macs_per_evaluation * config.solver_steps * _guided(config) / 1e9,
        macs_per_training_step=passes * counts.macs * config.batch_size / 1e9,
        parameters=counts.parameters,
        trained_parameters=counts.trained_parameters,
        memory=memory | {"total": sum(memory.values())},
        bytes_per_trajectory=states,
        bytes_per_prompt=counts.bytes_per_prompt,
        bytes_on_disk=states * config.num_trajectories + counts.bytes_per_prompt * num_prompts,
    )
    if device is None:
        return found
    rate = _measure(facts, family, counts.latent_shape, config, device)
    seconds = {
        "per_evaluation": rate,
        "recording": rate * config.solver_steps * _guided(config) * config.num_trajectories / config.num_devices,
        "training": rate * found.macs_per_training_step / (macs_per_evaluation / 1e9) * config.max_steps,
    }
    return replace(found, seconds=seconds)


def _guided(config: CostConfig) -> int:
    """Evaluations of the teacher per solver step."""
    return 2 if config.guidance_scale > 1 else 1


def _width(config: CostConfig) -> int:
    """Bytes of a stored number."""
    return 2 if config.dtype == "float16" else 4


def _count(facts: dict[str, Any], family: Family, config: CostConfig) -> _Counts:
    """Count on the student and on a student without history, both made of fake tensors from a transformer's config."""
    with _fake(class_name(facts), config.text_tokens):
        transformer = _make(facts)
        base = [*transformer.parameters()]
        knots = example_knots(config.num_steps)
        student = Student(transformer, StudentConfig(knots, config.history_layers, config.mask))
        if config.lora_rank:
            with unset_fake_temporarily():  # PEFT cannot make fake adapters; real ones are small
                add_adapters(transformer, base, family.block_lists, config.lora_rank)
        plain = Student(_make(facts), StudentConfig(knots, 0))
        shape = family.latent_shape(student.transformer, config.height, config.width)
        noise, condition = torch.zeros(1, *shape), family.example_condition(student.transformer, 1, config.text_tokens)
        return _Counts(
            macs=count_macs(lambda: sample(student.eval(), noise, condition)),
            macs_without_history=count_macs(lambda: sample(plain.eval(), noise, condition)),
            parameters=sum(p.numel() for p in student.parameters()),
            trained_parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
            activations=_activations(student, shape, family, config),
            latent_shape=tuple(shape),
            bytes_per_prompt=sum(
                x[0].numel() * (_width(config) if x.is_floating_point() else x.element_size())
                for x in condition.values()
                if x.ndim > 1
            ),
        )


def _memory(counts: _Counts, config: CostConfig) -> dict[str, int]:
    """Bytes per device while training. Weights, gradients, both moments of AdamW and EMA are float32 and sharded."""
    return {
        "weights": 4 * counts.parameters // config.num_devices,
        "gradients": 4 * counts.trained_parameters // config.num_devices,
        "optimizer": 8 * counts.trained_parameters // config.num_devices,
        "ema": 4 * counts.trained_parameters // config.num_devices,
        "activations": counts.activations,
    }


def _activations(student: Student, shape: tuple[int, ...], family: Family, config: CostConfig) -> int:
    """Bytes that a training step keeps for its backward pass.

    A part grows with the batch, the other does not (weights cast to bfloat16): both follow from batches of 1 and 2.
    """
    blocks = len(family.blocks(student.transformer))
    student.train()

    def saved(count: int) -> int:
        inputs = torch.zeros(count, student.num_steps, *shape)
        condition = family.example_condition(student.transformer, count, config.text_tokens)

        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
                return student(inputs, condition).square().mean()

        return _saved_bytes(run, [*student.parameters()])

    def extrapolated() -> int:
        one, two = saved(1), saved(2)
        return one + (two - one) * (config.batch_size - 1)

    whole = extrapolated()
    if not config.gradient_checkpointing:
        return whole
    student.enable_gradient_checkpointing()
    return extrapolated() + whole // blocks


def _measure(
    facts: dict[str, Any], family: Family, shape: tuple[int, ...], config: CostConfig, device: torch.device
) -> float:
    """Seconds of one evaluation of one sample with random weights: the best of three after a warm-up."""
    transformer = _make(facts).to(device).eval()
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
        "training": f"{cost.macs_per_training_step:,.0f} G MACs a step of {config.batch_size} trajectories",
        "memory": f"{gib['total']} per device: " + ", ".join(f"{k} {v}" for k, v in gib.items() if k != "total"),
        "disk": f"{cost.bytes_per_trajectory:,} bytes a trajectory, {cost.bytes_on_disk / 1e9:,.1f} GB for "
        f"{config.num_trajectories:,} of them",
    }
    if cost.trained_parameters < cost.parameters:
        rows["adapters"] = f"{cost.trained_parameters:,} trained parameters beside the teacher's, which are shared"
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
