"""What a distillation will cost, before it is begun: counted on the real modules, without their weights.

Modules are made of fake tensors (shapes without storage), so that a model of any size is counted on any machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from ardistill.config import CostConfig
from ardistill.core.knots import Knots
from ardistill.devices import resolve_device, synchronize
from ardistill.evaluation.cost import count_macs
from ardistill.families import Family, class_name, family_of, transformer_class
from ardistill.files import read_json
from ardistill.student import Student, StudentConfig
from ardistill.student.lora import add_adapters
from ardistill.student.sampling import sample
from ardistill.teacher import find_source, read_transformer_config
from ardistill.trajectories import nested_indices

ARCHITECTURES: dict[str, dict[str, Any]] = {
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
    """MACs are in 1e9 (multiply-accumulates), memory and disk in bytes, time in seconds."""

    macs_per_image: float
    """Of the student."""
    macs_per_image_step_distillation: float
    """Of a student without history in as many steps."""
    macs_per_image_teacher: float
    """Of the teacher's solver, guided steps counted twice."""
    macs_per_training_step: float
    """Forward and backward of a batch, as three forwards (four with checkpointing)."""
    parameters: int
    trained_parameters: int
    """Fewer than all with adapters."""
    memory: dict[str, int]
    """Per device while training: weights, gradients, optimizer, ema, activations, total."""
    bytes_per_trajectory: int
    bytes_per_prompt: int
    """Embeddings, stored once per distinct prompt; 0 for class labels."""
    bytes_on_disk: int
    seconds: dict[str, float] | None = None
    """Of recording and of training, from a run on the device; None: not measured."""


def transformer_config(name: str) -> dict[str, Any]:
    """The transformer's config of a teacher: of an architecture's name, a folder, or a Hub id (only it is fetched).

    Raises:
        ValueError: There is none.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
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
            f"expected one of {', '.join(ARCHITECTURES)}, a diffusers folder, a config.json or a Hub id, got {name!r}: "
            f"{error}"
        ) from error


def _make(config: dict[str, Any]) -> Any:
    return transformer_class(config).from_config(config)


def _knots(solver_steps: int, prediction_type: str = "epsilon") -> Knots:
    levels = [0.1 + 0.9 * i / solver_steps for i in range(solver_steps + 1)]
    times = tuple(1000 * (1 - i / solver_steps) - 1 for i in range(solver_steps))
    return Knots(prediction_type, times, tuple(levels), tuple((1 - a * a) ** 0.5 for a in levels))


def _saved_bytes(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Bytes that autograd keeps for backward, each storage once, parameters left out."""
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
    """Answers a model that asks how long its prompts are (Lumina2): as long as they may be."""

    def __init__(self, text_tokens: int) -> None:
        super().__init__()
        self.text_tokens = text_tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item and args[0].dtype == torch.int64:
            return self.text_tokens
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _fake(name: str, text_tokens: int) -> Iterator[None]:
    """Within, tensors have shapes alone."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _FullPrompts(text_tokens):
            yield
    except DataDependentOutputException as error:
        raise ValueError(
            f"{name} asks for values of its inputs as it runs, so that it cannot be counted without its weights"
        ) from error


def plan(options: CostConfig) -> Cost:
    """Count what recording, training and sampling take.

    Raises:
        ValueError: Unknown teacher, or numbers that do not fit it.
    """
    where = None if options.device is None else resolve_device(options.device)  # before anything is counted
    config = transformer_config(options.teacher)
    family = family_of(class_name(config))
    nested_indices(options.solver_steps, options.num_steps)
    guided = 2 if options.guidance_scale > 1 else 1
    with _fake(class_name(config), options.text_tokens):
        transformer = _make(config)
        base = [*transformer.parameters()]
        student = Student(transformer, StudentConfig(_knots(options.num_steps), options.history_layers, options.mask))
        if options.lora_rank:
            with unset_fake_temporarily():  # PEFT cannot make them so; they are small
                add_adapters(transformer, base, family.block_lists, options.lora_rank)
        plain = Student(_make(config), StudentConfig(_knots(options.num_steps), 0))
        shape = family.latent_shape(student.transformer, options.height, options.width)
        noise, condition = torch.zeros(1, *shape), family.example_condition(student.transformer, 1, options.text_tokens)
        macs = count_macs(lambda: sample(student.eval(), noise, condition))
        macs_plain = count_macs(lambda: sample(plain.eval(), noise, condition))
        evaluation = macs_plain / options.num_steps
        whole = sum(p.numel() for p in student.parameters())
        count = sum(p.numel() for p in student.parameters() if p.requires_grad)
        activations = _activations(student, shape, family, options)
    width = 2 if options.dtype == "float16" else 4
    sizes = {name: width if x.is_floating_point() else x.element_size() for name, x in condition.items()}
    per_prompt = sum(x[0].numel() * sizes[name] for name, x in condition.items() if x.ndim > 1)
    num_prompts = min(options.num_prompts, options.num_trajectories)  # others are not encoded
    states = (2 * options.num_steps + 1) * noise.numel() * width + 8
    memory = {
        "weights": 4 * whole // options.num_devices,
        "gradients": 4 * count // options.num_devices,
        "optimizer": 8 * count // options.num_devices,
        "ema": 4 * count // options.num_devices,
        "activations": activations,
    }
    passes = 4 if options.gradient_checkpointing else 3
    cost = Cost(
        macs_per_image=macs / 1e9,
        macs_per_image_step_distillation=macs_plain / 1e9,
        macs_per_image_teacher=evaluation * options.solver_steps * guided / 1e9,
        macs_per_training_step=passes * macs * options.batch_size / 1e9,
        parameters=whole,
        trained_parameters=count,
        memory=memory | {"total": sum(memory.values())},
        bytes_per_trajectory=states,
        bytes_per_prompt=per_prompt,
        bytes_on_disk=states * options.num_trajectories + per_prompt * num_prompts,
    )
    if where is None:
        return cost
    rate = _measure(config, shape, options.text_tokens, where)
    seconds = {
        "per_evaluation": rate,
        "recording": rate * options.solver_steps * guided * options.num_trajectories / options.num_devices,
        "training": rate * cost.macs_per_training_step / (evaluation / 1e9) * options.max_steps,
    }
    return Cost(**{**asdict(cost), "seconds": seconds})


def _activations(student: Student, shape: tuple[int, ...], family: Family, options: CostConfig) -> int:
    """Of a batch: what grows with it, and what does not (weights cast to bfloat16)."""
    blocks = len(family.blocks(student.transformer))
    student.train()

    def saved(count: int) -> int:
        inputs = torch.zeros(count, student.num_steps, *shape)
        condition = family.example_condition(student.transformer, count, options.text_tokens)

        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.mixed_precision == "bf16"):
                return student(inputs, condition).square().mean()

        return _saved_bytes(run, [*student.parameters()])

    def extrapolated() -> int:
        one, two = saved(1), saved(2)
        return one + (two - one) * (options.batch_size - 1)

    whole = extrapolated()
    if not options.gradient_checkpointing:
        return whole
    student.enable_gradient_checkpointing()
    return extrapolated() + whole // blocks


def _measure(config: dict[str, Any], shape: tuple[int, ...], text_tokens: int, device: torch.device) -> float:
    """Seconds of one evaluation of one sample, random weights, the best of three."""
    transformer = _make(config).to(device).eval()
    family = family_of(class_name(config))
    example = family.example_condition(transformer, 1, text_tokens)
    condition = {name: value.to(device) for name, value in example.items()}
    noise, times = torch.zeros(1, *shape, device=device), []
    with torch.no_grad():
        for _ in range(4):
            began = time.perf_counter()
            family.call(transformer, noise, torch.full((1,), 500.0, device=device), condition)
            synchronize(device)
            times.append(time.perf_counter() - began)
    return min(times[1:])


def describe(cost: Cost, options: CostConfig) -> str:
    """The plan as lines for people."""
    gib = {name: f"{size / 2**30:,.2f} GiB" for name, size in cost.memory.items()}
    share = cost.macs_per_image / cost.macs_per_image_teacher
    more = cost.macs_per_image / cost.macs_per_image_step_distillation - 1
    guided = "guided " if options.guidance_scale > 1 else ""
    rows = {
        "sampling": f"{cost.macs_per_image:,.2f} G MACs an image, {more:+.2%} against step distillation",
        "teacher": f"{cost.macs_per_image_teacher:,.0f} G MACs an image in {options.solver_steps} {guided}steps; "
        f"the student takes {share:.1%} of it",
        "training": f"{cost.macs_per_training_step:,.0f} G MACs a step of {options.batch_size} trajectories",
        "memory": f"{gib['total']} per device: " + ", ".join(f"{k} {v}" for k, v in gib.items() if k != "total"),
        "disk": f"{cost.bytes_per_trajectory:,} bytes a trajectory, {cost.bytes_on_disk / 1e9:,.1f} GB for "
        f"{options.num_trajectories:,} of them",
    }
    if cost.trained_parameters < cost.parameters:
        rows["adapters"] = f"{cost.trained_parameters:,} parameters trained beside the teacher's, which are shared"
    if cost.bytes_per_prompt:
        num_prompts = min(options.num_prompts, options.num_trajectories)
        rows["prompts"] = f"{cost.bytes_per_prompt:,} bytes each, stored once ({num_prompts:,} of them are used)"
    if cost.seconds is not None:
        recording, training = (cost.seconds[name] / 3600 for name in ("recording", "training"))
        rows["time"] = (
            f"recording {recording:,.1f} h, {options.max_steps:,} steps of training {training:,.1f} h on this device "
            f"({1000 * cost.seconds['per_evaluation']:,.1f} ms an evaluation at batch 1)"
        )
    return "\n".join(f"{name:<10}{text}" for name, text in rows.items())
