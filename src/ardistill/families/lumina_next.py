"""Lumina-Next (Zhuo et al. 2024, arXiv:2406.18583): text by cross-attention, logits scaled by the image's size."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor

from ardistill.families.encoding import Condition, encode_masked
from ardistill.families.family import Family, mask_condition
from ardistill.families.grids import scheduler_grid
from ardistill.families.lumina2 import take_negative


@functools.cache
def _rotary(width: int, height: int, breadth: int, scale: float, device: torch.device) -> Tensor:
    """Positions of a grid of tokens, stretched by ``scale``, as complex numbers: (height, breadth, width / 2)."""
    found: Tensor = get_2d_rotary_pos_embed_lumina(width, height, breadth, linear_factor=scale)
    return found.to(device)


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: time runs from 0 (noise) to 1 (image).

    Positions are stretched, and logits scaled, by the size of the image against that of the training.
    """
    trained, (height, width) = transformer.config.sample_size, latents.shape[-2:]
    patch, scale = transformer.config.patch_size, math.sqrt(height * width) / trained
    return {
        "hidden_states": latents,
        "timestep": 1 - timestep / 1000,
        "encoder_hidden_states": condition["encoder_hidden_states"],
        "encoder_mask": condition["encoder_attention_mask"],
        "image_rotary_emb": _rotary(transformer.head_dim, height // patch, width // patch, scale, latents.device),
        "cross_attention_kwargs": {"base_sequence_length": (trained // 2) ** 2},
    }


def _guide_three_channels(guided: Tensor, conditional: Tensor) -> Tensor:
    """Its pipeline guides the first three channels of the latents alone."""
    return torch.cat([guided[:, :3], conditional[:, 3:]], dim=1)


FAMILY = Family(
    block_lists=("layers",),
    attention=("attn1",),
    head=("norm_out.linear_1", "norm_out.linear_2"),
    inputs=_inputs,
    output=take_negative,
    pipeline="LuminaPipeline",
    encode=encode_masked,
    example_extras=mask_condition,
    grid=scheduler_grid,
    ignores_vae_shift=True,
    rescale_guided=_guide_three_channels,
)
