"""Allegro (Zhou et al. 2024, arXiv:2410.15458): video, text by cross-attention, rotary positions in three axes.

Its autoencoder decodes whole tiles alone: videos have 21 frames and a multiple of 16, as ``num_frames`` counts them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import Tensor

from ardistill.families.encoding import Condition, encode_masked
from ardistill.families.family import Family, mask_condition


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: rotary factors along each axis, and the place of each token."""
    config, frames = transformer.config, latents.shape[2]
    grid = latents.shape[-2] // config.patch_size, latents.shape[-1] // config.patch_size
    scale = config.interpolation_scale_t, config.interpolation_scale_h, config.interpolation_scale_w
    found: Any = get_3d_rotary_pos_embed_allegro(
        config.attention_head_dim, ((0, 0), grid), grid, frames, scale, device=latents.device
    )
    places = torch.cartesian_prod(*(x.long() for x in found[3:])).T.unsqueeze(1).contiguous()
    rotary = found[:3], tuple(places.unbind(0))
    return {"hidden_states": latents, "timestep": timestep, "image_rotary_emb": rotary, **condition}


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=("proj_out",),
    inputs=_inputs,
    pipeline="AllegroPipeline",
    encode=encode_masked,
    example_extras=mask_condition,
    preparation="pipeline.vae.enable_tiling()\npipeline.vae.enable_slicing()\n",
    video=True,
)
