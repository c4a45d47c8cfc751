"""FLUX.1 (Black Forest Labs 2024): joint attention with packed latents, text before the image, embedded guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import HEAD, Family, pooled_condition
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed

PACKING = 2
"""Side, in latents, of the square that is packed into one token."""


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward.

    The class takes packed latents, (b, h/2 * w/2, 4 c), and timesteps in [0, 1]. Its rotary embedding reads positions
    on three axes: image tokens have row and column in the last two, text tokens are at 0. The condition adds
    ``encoder_hidden_states``, ``pooled_projections`` and, where the network embeds it, ``guidance``.
    """
    height, width = (n // PACKING for n in latents.shape[-2:])
    tokens = condition["encoder_hidden_states"].shape[1]
    ids = {
        "img_ids": grid_positions(height, width, 3, latents.device),
        "txt_ids": torch.zeros(tokens, 3, dtype=torch.float32, device=latents.device),
    }
    return {"hidden_states": pack(latents, PACKING), "timestep": timestep / 1000, **ids, **condition}


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """T5's embeddings, (b, t, d), and CLIP's pooled ones, (b, d).

    ``encode_prompt`` of the pipeline takes a second list of prompts, for T5; None stands for the same ones.
    """
    embeddings, pooled, _text_ids = encode_prompt(pipeline, prompts, None)
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),  # joint blocks first, as the forward runs them
    attention=("attn",),
    head=HEAD,
    text="first",  # keys of text tokens stand before those of image tokens
    image_tokens=count_packed,
    scale_is_input_of=("FluxPipeline",),
    inputs=_inputs,
    output=take_packed,
    pipeline="FluxPipeline",
    encode=_encode,
    example_extras=pooled_condition,
    packing=PACKING,
)
