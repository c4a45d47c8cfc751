"""Counts on a transformer's real modules without their weights.

Modules are made of fake tensors (shapes without storage), so that a model of any size is counted on any machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from diffusers.models.modeling_utils import no_init_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from ardistill.config import CostConfig
from ardistill.core.knots import Knots
from ardistill.evaluation.cost import count_macs
from ardistill.families import Family, class_name, transformer_class
from ardistill.planning.answers import Answers
from ardistill.planning.memory import Activations, Alive, Memory, Weights
from ardistill.student import Student, StudentConfig
from ardistill.student.lora import add_adapters
from ardistill.student.sample import sample

RECOMPUTED = ("gradient_checkpointing", "checkpoint_stride", "sequential")
"""Options of a configuration that decide what a training pass keeps."""


def make(facts: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A transformer with random weights of a type, from its config."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return transformer_class(facts).from_config(facts)
    finally:
        torch.set_default_dtype(before)


def example_knots(num_steps: int) -> Knots:
    """Evenly spaced knots for a student whose cost is counted; the counts do not depend on their values."""
    levels = [0.1 + 0.9 * i / num_steps for i in range(num_steps + 1)]
    times = tuple(1000 * (1 - i / num_steps) - 1 for i in range(num_steps))
    return Knots("epsilon", times, tuple(levels), tuple((1 - a * a) ** 0.5 for a in levels))


def guided_rows(config: CostConfig) -> int:
    """Evaluations of the teacher per solver step."""
    return 2 if config.guidance_scale > 1 else 1


def stored_width(config: CostConfig) -> int:
    """Bytes of a stored number."""
    return 2 if config.dtype == "float16" else 4


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


@contextlib.contextmanager
def _fake(name: str, text_tokens: int) -> Iterator[None]:
    """Within this context, tensors have shapes but no values.

    Raises:
        ValueError: The model ``name`` needs values of its inputs that `Answers` does not give.
    """
    try:
        with no_init_weights(), FakeTensorMode(allow_non_fake_inputs=True), Answers(text_tokens):
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"{name} asks for values of its inputs as it runs, so its cost cannot be counted without its weights"
        ) from error


@dataclass(frozen=True)
class Counts:
    """What is counted of a student and its teacher. MACs are not in units of 1e9 here."""

    macs: float
    """MACs of the student for one image."""
    macs_per_evaluation: float
    """MACs of one evaluation of the teacher for one image."""
    latent_shape: tuple[int, ...]
    """Shape of one sample, (c, h, w)."""
    bytes_per_prompt: int
    memory: Memory


def _student(transformer: Any, config: CostConfig) -> Student:
    """A student of a transformer; within `_fake`."""
    return Student(transformer, StudentConfig(example_knots(config.num_steps), config.history_layers, config.mask))


def _trained(facts: dict[str, Any], family: Family, config: CostConfig) -> Student:
    """The student as it is trained, of fake tensors; within `_fake`."""
    transformer = make(facts, _narrow(config) if config.lora_rank else torch.float32)
    base = [*transformer.parameters()]
    student = _student(transformer, config)
    if config.lora_rank:
        with unset_fake_temporarily():  # PEFT cannot make fake adapters; real ones are small
            add_adapters(transformer, base, family.block_lists, config.lora_rank)
    return student


def _narrow(config: CostConfig) -> torch.dtype:
    """The type that weights which are not trained compute in."""
    return torch.float32 if config.weights == "float32" else torch.bfloat16


def count(facts: dict[str, Any], family: Family, config: CostConfig) -> Counts:
    """Count the compute and the memory of a student and its teacher.

    Raises:
        ValueError: The model needs values of its inputs, or a number of the configuration does not fit it.
    """
    with _fake(class_name(facts), config.text_tokens):
        student = _student(make(facts, _narrow(config)), config).eval()
        teacher = make(facts, _narrow(config)).eval()
        shape, guided = family.latent_shape(teacher, config.height, config.width, config.frames), guided_rows(config)

        def run(rows: int, draw: Callable[[Tensor, dict[str, Any]], Any]) -> tuple[float, int]:
            condition = family.example_condition(teacher, rows, config.text_tokens)
            noise = torch.zeros(rows, *shape)
            alive = Alive([*student.parameters(), *teacher.parameters()])

            def drawn() -> None:
                with alive:
                    draw(noise, condition)

            with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
                return count_macs(drawn) / rows, alive.peak

        def evaluate(noise: Tensor, condition: dict[str, Any]) -> Any:
            return family.call(teacher, noise, torch.full((len(noise),), 500.0), condition)

        drawing, evaluation = run(1, lambda x, condition: sample(student, x, condition)), run(guided, evaluate)
        prompt = family.example_condition(teacher, 1, config.text_tokens)
        return Counts(
            macs=drawing[0],
            macs_per_evaluation=evaluation[0],
            latent_shape=tuple(shape),
            bytes_per_prompt=sum(
                x[0].numel() * (stored_width(config) if x.is_floating_point() else x.element_size())
                for x in prompt.values()
                if x.ndim > 1
            ),
            memory=Memory(
                weights=Weights.of(_trained(facts, family, config) if config.lora_rank else student),
                activations=_counter(facts, family, config),
                evaluation=evaluation[1],
                drawing=drawing[1],
            ),
        )


def _counter(facts: dict[str, Any], family: Family, config: CostConfig) -> Callable[[CostConfig], Activations]:
    """Counts the activations of configurations that differ from one in what is recomputed, each such case once."""

    @cache
    def counted(*options: Any) -> Activations:
        chosen = dict(zip(RECOMPUTED, options, strict=True))
        return _activations(facts, family, replace(config, **chosen))

    return lambda plan: counted(*(getattr(plan, name) for name in RECOMPUTED))


def _activations(facts: dict[str, Any], family: Family, config: CostConfig) -> Activations:
    """Bytes that a training step keeps for its backward pass.

    A part grows with the batch, the other does not (weights cast to bfloat16): both follow from batches of 1 and 2.
    What is recomputed is kept of one block, or of one step, at a time.
    """
    with _fake(class_name(facts), config.text_tokens):
        student = _trained(facts, family, config).train()
        shape = family.latent_shape(student.transformer, config.height, config.width, config.frames)
        blocks = len(family.blocks(student.transformer))

        def saved(rows: int, sequential: bool) -> int:
            inputs = torch.zeros(rows, student.num_steps, *shape)
            condition = family.example_condition(student.transformer, rows, config.text_tokens)

            def run() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
                    return student(inputs, condition, sequential=sequential).square().mean()

            return _saved_bytes(run, [*student.parameters()])

        def growing(sequential: bool = False) -> Activations:
            one, two = saved(1, sequential), saved(2, sequential)
            return Activations(fixed=2 * one - two, per_row=two - one, blocks=blocks)

        whole = growing()
        if config.gradient_checkpointing:
            student.enable_gradient_checkpointing(config.checkpoint_stride)
            folded, recomputed = growing(), whole.part(blocks)
        else:
            folded, recomputed = whole, Activations(0, 0, blocks)
        if not config.sequential:
            return folded.and_also(recomputed)
        return (
            growing(sequential=True).and_also(folded.part(config.num_steps)).and_also(recomputed.part(config.num_steps))
        )
