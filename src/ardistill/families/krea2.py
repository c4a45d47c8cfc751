"""Krea 2 (Krea 2026): one sequence, text first, fused from several layers of the text encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import Family, mask_condition
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: packed latents, timesteps in [0, 1], positions of text and image.

    ``encoder_hidden_states`` of the condition are the text encoder's layers side by side, (b, t, layers * d).
    """
    found = condition["encoder_hidden_states"]
    text_ids = torch.zeros(found.shape[1], 3, dtype=torch.float32, device=latents.device)
    image_ids = grid_positions(latents.shape[-2] // 2, latents.shape[-1] // 2, 3, latents.device)
    return {
        "hidden_states": pack(latents, 2),
        "encoder_hidden_states": found.unflatten(-1, (transformer.config.num_text_layers, -1)),
        "timestep": timestep / 1000,
        "position_ids": torch.cat([text_ids, image_ids]),
        "encoder_attention_mask": condition["encoder_attention_mask"],
    }


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """The layers of the text encoder that the pipeline selects side by side, and a mask of the tokens that count."""
    layers, mask = encode_prompt(pipeline, prompts)
    return {"encoder_hidden_states": layers.flatten(2), "encoder_attention_mask": mask}


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """Placeholders for all layers of the text encoder and for the mask."""
    layers = torch.zeros(count, text_tokens, config.num_text_layers * config.text_hidden_dim)
    return {"encoder_hidden_states": layers} | mask_condition(config, count, text_tokens)


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn",),
    head=("final_layer.linear",),
    text="first",
    image_tokens=count_packed,
    time_embedding="time_embed",
    guidance_off=("guidance_scale", 0.0),
    inputs=_inputs,
    output=take_packed,
    pipeline="Krea2Pipeline",
    encode=_encode,
    example_extras=_example_extras,
    packing=2,
)
