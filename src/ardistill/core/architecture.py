"""Where a transformer class attends and where its output layers are; an exported student carries its class's entry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def count_patches(transformer: Any, hidden_states: Tensor) -> int:
    """Image tokens of a transformer that cuts latents (b, c, h, w) into square patches itself."""
    return math.prod(hidden_states.shape[-2:]) // transformer.config.patch_size**2


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How to find the self-attention, the image tokens and the output layers of a transformer class."""

    block_lists: tuple[str, ...]
    """Attributes that hold the blocks, in the order in which the blocks run."""
    attention: tuple[str, ...]
    """Names of a block's self-attention, with dots if it is deeper; a block may lack the second of a pair."""
    head: tuple[str, ...]
    """The linear layers after the last block, which the direct output has once per step."""
    text: str = ""
    """Where text keys stand in joint attention: ``first``, ``last``, or empty for none. History has image keys only."""
    image_tokens: Callable[[Any, Any], int] = count_patches
    """(transformer, first argument of its forward) -> image tokens of a sample; called only where there is text."""
    image_start: Callable[[dict[str, Any]], Tensor] | None = None
    """(arguments of the forward) -> index of each row's first image token, where prompts of unequal length shift it."""
    linear: tuple[str, Any] = ("", None)
    """Call of the attention processor where attention is linear, and what takes the place of ``torch.matmul`` in it."""
    by_row: tuple[str, Any] = ("", None)
    """Call of the attention processor where it attends row by row, and what takes the place of its attention call."""
    time_embedding: str = "timestep_embedder"
    """How the names of the modules that embed the time end; the guidance scale is embedded beside the time."""
    guidance_off: tuple[str, float] = ("guidance_scale", 1.0)
    """Argument of the pipeline's call, or none, and its value that turn its classifier-free guidance off."""
    keeps_float32: bool = False
    """Whether the pipeline wants every state in float32 whatever the weights are in, and converts the last one."""
    scale_is_input_of: tuple[str, ...] = ()
    """Pipeline classes whose ``guidance_scale`` is an input of the network instead of classifier-free guidance.

    It is a fact of the pipeline class; `embeds_guidance` is one of a single teacher (Flux-schnell has the same pipeline
    but no such input), and ``StudentConfig.takes_guidance`` is one of a student.
    """

    def blocks(self, transformer: nn.Module) -> list[tuple[nn.Module, list[str]]]:
        """Every block, lowest first, with the names of its self-attention modules."""
        found = [block for name in self.block_lists for block in getattr(transformer, name)]
        return [(x, [name for name in self.attention if name in dict(x.named_modules())]) for x in found]

    @staticmethod
    def embeds_guidance(transformer: Any) -> bool:
        """Whether this teacher embeds the guidance scale (Flux-dev), so that there is no unconditional branch.

        It is read from the transformer's config. What a student adds for guidance does not count:
        ``StudentConfig.takes_guidance``.
        """
        return bool(transformer.config.get("guidance_embeds", False))

    def place_image(self, transformer: Any, arguments: dict[str, Any]) -> tuple[int | None, Tensor | None]:
        """Number of image tokens of a sample, and where they begin in each row if that differs between rows.

        Both are None where attention sees image tokens alone.
        """
        if not self.text:
            return None, None
        start = self.image_start and self.image_start(arguments)
        return self.image_tokens(transformer, next(iter(arguments.values()))), start


ARCHITECTURES: dict[str, Architecture] = {}
"""Transformer class name -> its architecture; `ardistill.families` fills it."""


def architecture_of(transformer: nn.Module) -> Architecture:
    """The architecture of a transformer.

    Raises:
        ValueError: Its class is not known.
    """
    name = type(transformer).__name__
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"expected a transformer of class {known}, got {name}; add yours with register_family")
    return ARCHITECTURES[name]
