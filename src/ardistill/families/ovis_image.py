"""Ovis-Image (Ovis Team 2025, arXiv:2511.22982): Flux's layout without pooled embeddings or embedded guidance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ardistill.families.encoding import Condition, encode_plain
from ardistill.families.family import HEAD, Family
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed, text_positions


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: packed latents, timesteps in [0, 1], positions of text and image."""
    ids = {
        "img_ids": grid_positions(latents.shape[-2] // 2, latents.shape[-1] // 2, 3, latents.device),
        "txt_ids": text_positions(condition["encoder_hidden_states"].shape[1], latents.device),
    }
    return {"hidden_states": pack(latents, 2), "timestep": timestep / 1000, **ids, **condition}


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="first",
    image_tokens=count_packed,
    inputs=_inputs,
    output=take_packed,
    pipeline="OvisImagePipeline",
    encode=encode_plain,
    packing=2,
)
