"""HunyuanDiT (Li et al. 2024, arXiv:2405.08748): two text encoders by cross-attention, rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import HEAD, Family
from ardistill.families.tokens import centred, pixel_size


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: rotary positions, original size 1024, no crop, style 0."""
    config = transformer.config
    patch = config.patch_size
    size = latents.shape[-2] // patch, latents.shape[-1] // patch
    corners = centred(size, (64 // patch, 64 // patch))
    rotary = get_2d_rotary_pos_embed(config.attention_head_dim, corners, size, device=latents.device, output_type="pt")
    original = torch.full((len(latents), 2), 1024.0, device=latents.device, dtype=latents.dtype)
    size_facts = {
        "image_meta_size": torch.cat([original, pixel_size(latents, 0.0, 0.0)], dim=1),
        "style": torch.zeros(len(latents), device=latents.device, dtype=torch.long),
    }
    times = timestep.to(latents.dtype)  # the class takes from it the dtype that it embeds time, size and style in
    return {"hidden_states": latents, "timestep": times, "image_rotary_emb": rotary, **size_facts, **condition}


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings and masks of both text encoders, BERT and T5."""
    condition: Condition = {}
    for index, suffix in ((0, ""), (1, "_t5")):  # BERT and T5
        found = encode_prompt(pipeline, prompts, text_encoder_index=index)
        condition[f"encoder_hidden_states{suffix}"], condition[f"text_embedding_mask{suffix}"] = found[0], found[2]
    return condition


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """Placeholders for the mask of BERT's tokens and for T5's embeddings and mask."""
    return {
        "text_embedding_mask": torch.ones(count, text_tokens, dtype=torch.long),
        "encoder_hidden_states_t5": torch.zeros(count, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": torch.ones(count, config.text_len_t5, dtype=torch.long),
    }


FAMILY = Family(
    block_lists=("blocks",),
    attention=("attn1",),
    head=HEAD,
    inputs=_inputs,
    pipeline="HunyuanDiTPipeline",
    encode=_encode,
    example_extras=_example_extras,
)
