"""Qwen-Image (Wu et al. 2025, arXiv:2508.02324): joint attention with packed latents, text before the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import HEAD, Family
from ardistill.families.tokens import count_packed, pack, take_packed, unpack


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: packed latents, timesteps in [0, 1], grids of tokens."""
    height, width = (n // 2 for n in latents.shape[-2:])
    shapes = [[(1, height, width)]] * len(latents)
    return {"hidden_states": pack(latents, 2), "timestep": timestep / 1000, "img_shapes": shapes, **condition}


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings and their mask; a pipeline that gives no mask has no padding."""
    embeddings, mask = encode_prompt(pipeline, prompts)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device) if mask is None else mask
    return {"encoder_hidden_states": embeddings, "encoder_hidden_states_mask": mask}


def _keep_token_norms(guided: Tensor, conditional: Tensor) -> Tensor:
    """Guidance keeps the norm of each token, as in Qwen-Image's pipeline."""
    guided_tokens, conditional_tokens = pack(guided, 2), pack(conditional, 2)
    norms = conditional_tokens.norm(dim=-1, keepdim=True) / guided_tokens.norm(dim=-1, keepdim=True)
    return unpack(guided_tokens * norms, guided, 2)


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn",),
    head=HEAD,
    text="first",
    image_tokens=count_packed,
    guidance_off=("true_cfg_scale", 1.0),
    inputs=_inputs,
    output=take_packed,
    pipeline="QwenImagePipeline",
    encode=_encode,
    rescale_guided=_keep_token_norms,
    packing=2,
)
