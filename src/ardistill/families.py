"""What differs from one architecture to the next, as data: one row a family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Condition = dict[str, Tensor]
"""What the transformer is conditioned on besides the time, one row per sample: for DiT ``class_labels`` (b,)."""


def _call_dit(transformer: nn.Module, hidden_states: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    return transformer(hidden_states, timestep=timestep, class_labels=condition["class_labels"]).sample


def _null_dit(transformer: Any, condition: Condition) -> Condition:
    return {"class_labels": torch.full_like(condition["class_labels"], transformer.config.num_embeds_ada_norm)}


@dataclass(frozen=True)
class Family:
    """How to find the self-attention of a transformer class and how to call it."""

    block_lists: tuple[str, ...]
    """Attributes that hold the blocks, in the order they run."""
    attention: str
    """Self-attention of a block."""
    head: tuple[str, ...]
    """The linear layers after the last block: what the direct output has once per step."""
    call: Any
    """(transformer, hidden_states (b, c, h, w), timestep (b,), condition) -> prediction (b, c or 2c, h, w)."""
    null_condition: Any
    """(transformer, condition) -> the condition of the unguided branch."""

    def attention_modules(self, transformer: nn.Module) -> list[nn.Module]:
        """Self-attention of every block, lowest first."""
        return [getattr(b, self.attention) for name in self.block_lists for b in getattr(transformer, name)]


FAMILIES = {
    "DiTTransformer2DModel": Family(
        ("transformer_blocks",), "attn1", ("proj_out_1", "proj_out_2"), _call_dit, _null_dit
    ),
}


def family_of(transformer: nn.Module | str) -> Family:
    """The family of a transformer or of its class name.

    Raises:
        ValueError: No such family is known.
    """
    name = transformer if isinstance(transformer, str) else type(transformer).__name__
    if name not in FAMILIES:
        raise ValueError(f"unknown transformer class {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]
