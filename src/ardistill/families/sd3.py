"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206): joint attention, text behind the image."""

from __future__ import annotations

from typing import Any

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import HEAD, Family, pooled_condition
from ardistill.families.grids import scheduler_grid


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings of all three text encoders, and CLIP's pooled ones; None: CLIP and T5 get the same prompt."""
    found = encode_prompt(pipeline, prompts, None, None)
    return {"encoder_hidden_states": found[0], "pooled_projections": found[2]}


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn", "attn2"),
    head=HEAD,
    text="last",
    pipeline="StableDiffusion3Pipeline",
    encode=_encode,
    example_extras=pooled_condition,
    grid=scheduler_grid,
)
