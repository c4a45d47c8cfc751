"""Chroma (Lodestone Rock 2025): Flux's layout with a mask of the prompt and true guidance; text before the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import Family, mask_condition
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: packed latents, timesteps in [0, 1], positions as Flux's, and a mask of
    text and image.

    The pipeline's mask is of floats, which attention adds to its logits: 1 where both tokens count, else 0.
    """
    text, mask = condition["encoder_hidden_states"], condition["encoder_attention_mask"]
    tokens = pack(latents, 2)
    return {
        "hidden_states": tokens,
        "timestep": timestep / 1000,
        "encoder_hidden_states": text,
        "attention_mask": torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1),
        "img_ids": grid_positions(latents.shape[-2] // 2, latents.shape[-1] // 2, 3, latents.device),
        "txt_ids": torch.zeros(text.shape[1], 3, dtype=torch.float32, device=latents.device),
    }


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """T5's embeddings and a mask of the prompt and of one token of padding."""
    embeddings, _text_ids, mask = encode_prompt(pipeline, prompts)[:3]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=("proj_out",),
    text="first",
    image_tokens=count_packed,
    time_embedding="distilled_guidance_layer",
    inputs=_inputs,
    output=take_packed,
    pipeline="ChromaPipeline",
    encode=_encode,
    example_extras=mask_condition,
    packing=2,
)
