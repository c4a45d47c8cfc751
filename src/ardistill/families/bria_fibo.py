"""Bria FIBO (Bria AI 2025): each block reads the prompt's features from its own layer of the text encoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import HEAD, Family, mask_condition
from ardistill.families.grids import linear_mu
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: tokens of one latent each, text per block, a mask of keys.

    The condition's ``text_encoder_layers`` are the text encoder's layers side by side, (b, t, layers * d), and
    ``encoder_hidden_states`` the last two of them. Every block gets one layer, the last blocks the last ones; if there
    are too few, the last layer serves the others.
    """
    found, mask = condition["text_encoder_layers"], condition["encoder_attention_mask"].bool()
    layers = [*found.unflatten(-1, (-1, transformer.config.text_encoder_dim)).unbind(-2)]
    blocks = len(transformer.caption_projection)
    image = mask.new_ones(len(latents), math.prod(latents.shape[-2:]))
    return {
        "hidden_states": pack(latents, 1),
        "timestep": timestep,
        "encoder_hidden_states": condition["encoder_hidden_states"],
        "text_encoder_layers": layers[-blocks:] + layers[-1:] * (blocks - len(layers)),
        "img_ids": grid_positions(latents.shape[-2], latents.shape[-1], 3, latents.device),
        "txt_ids": torch.zeros(found.shape[1], 3, dtype=torch.float32, device=latents.device),
        "joint_attention_kwargs": {"attention_mask": torch.cat([mask, image], dim=1)[:, None, None]},
    }


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """All layers of the text encoder side by side, the last two of them, and a mask of the tokens that count."""
    found = encode_prompt(pipeline, prompts, guidance_scale=1.0)
    layers = found[5]
    return {
        "encoder_hidden_states": torch.cat([layers[-1], layers[-2]], dim=-1),
        "text_encoder_layers": torch.cat(layers, dim=-1),
        "encoder_attention_mask": found[3].bool(),
    }


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """A layer of the text encoder for each block, and a mask."""
    layers = config.num_layers + config.num_single_layers
    placeholder = torch.zeros(count, text_tokens, layers * config.text_encoder_dim)
    return mask_condition(config, count, text_tokens) | {"text_encoder_layers": placeholder}


def _mu(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """A token is one latent."""
    return linear_mu(config, math.prod(sample_shape[-2:]))


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="first",
    image_tokens=count_packed,
    inputs=_inputs,
    output=take_packed,
    pipeline="BriaFiboPipeline",
    encode=_encode,
    example_extras=_example_extras,
    mu=_mu,
    default_size=64,
)
