"""Make a teacher's transformer that of a few-step student: history in its lower layers, heads, guidance."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ardistill.core.architecture import Architecture, architecture_of
from ardistill.core.config import StudentConfig
from ardistill.core.heads import StepLinear, embed_guidance
from ardistill.core.history import History, attach_history


class Attachment:
    """Forward pre-hook of a student's transformer, and record of what the student adds to it.

    The hook completes the layout of the current call with what follows from the arguments of this forward. As a hook,
    not in ``forward``, it also runs when the module is compiled or offloaded.
    """

    def __init__(self, transformer: Any, config: StudentConfig, architecture: Architecture, history: History) -> None:
        self.config, self.architecture, self.history = config, architecture, history
        self.is_complete = True
        """Whether the student's own weights have been loaded."""
        self.own_weights: list[str] = []
        """Names of the weights that the stock transformer lacks: heads of later steps, gates, guidance."""
        self.names = [*inspect.signature(type(transformer).forward).parameters][1:]

    def __call__(self, transformer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        layout = self.history.current()
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        first = given.get(self.names[0], next(iter(given.values())))
        arguments = {self.names[0]: first} | given
        layout.image_tokens, layout.image_start = self.architecture.place_image(transformer, arguments)
        if isinstance(layout.guidance, float):
            layout.guidance = torch.full((len(first),), layout.guidance, dtype=torch.float32, device=first[0].device)


def compile_blocks(transformer: Any, **options: Any) -> None:
    """Compile each block of a transformer in place; the blocks of one class share their graphs.

    Where attention runs row by row, torch's ``capture_dynamic_output_shape_ops`` is set for the whole process.

    Args:
        transformer: A transformer of a known class, with or without a history.
        options: Options of ``torch.compile``.
    """
    # A class has a graph for each step, and again where inputs have other strides; torch 2.11 has no such option.
    limit = {"recompile_limit": 64} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    architecture = architecture_of(transformer)
    torch._dynamo.config.capture_dynamic_output_shape_ops |= bool(architecture.by_row[0])  # rows of unequal length
    for block, _ in architecture.blocks(transformer):
        block.compile(**limit | options)


def attach(transformer: Any, config: StudentConfig) -> Attachment:
    """Extend a transformer, in place, to attend to the earlier steps of its trajectory.

    Args:
        transformer: A diffusers transformer of a known class, without a history.
        config: Knots, history, target and output of the student.

    Returns:
        The attachment, which the transformer keeps as ``transformer.attachment``.

    Raises:
        ValueError: The class is not known, or ``history_layers`` exceeds its depth.
    """
    architecture = architecture_of(transformer)
    blocks = architecture.blocks(transformer)
    if not 0 <= config.history_layers <= len(blocks):
        raise ValueError(f"expected 0 to {len(blocks)} history layers (the depth), got {config.history_layers}")
    stock = {id(parameter): parameter for parameter in transformer.parameters()}  # references: ids stay unique
    history = attach_history(blocks[: config.history_layers], config.mask, architecture.text, config.has_gates)
    if config.output == "direct":  # a head emits the target: initialised as b x prediction, b clamped
        scales = [max(-1.0, min(1.0, b)) for _, b in config.coefficients]
        for name in architecture.head:  # the last layer emits; those before it shift and scale
            factors = scales if name == architecture.head[-1] else [1.0] * len(scales)
            transformer.set_submodule(name, StepLinear(transformer.get_submodule(name), factors, history))
    if config.takes_guidance and not architecture.embeds_guidance(transformer):
        found = [x for name, x in transformer.named_modules() if name.endswith(architecture.time_embedding)]
        embed_guidance(found, history, config.guidance_range)
    attachment = Attachment(transformer, config, architecture, history)
    attachment.own_weights = [name for name, p in transformer.named_parameters() if id(p) not in stock]
    transformer.register_forward_pre_hook(attachment, with_kwargs=True)
    transformer.attachment = attachment
    for module in (x for x in transformer.modules() if hasattr(x, "dropout_prob")):
        module.dropout_prob = 0.0  # disable label dropout: it would differ between steps
    return attachment
