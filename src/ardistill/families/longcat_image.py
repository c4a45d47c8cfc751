"""LongCat-Image (Meituan LongCat Team 2025): Flux's layout without pooled embeddings, guidance that is renormalised."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ardistill.families.encoding import Condition, encode_plain
from ardistill.families.family import HEAD, Family
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed, text_positions, unpack

IMAGE_START = 512
"""Row and column of the first image token: the pipeline's longest prompt, whatever the length of the prompt."""


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: packed latents, timesteps in [0, 1], positions on three axes.

    The first axis is 0 for text and 1 for images; rows and columns of the image are counted from 512.
    """
    image_ids = grid_positions(latents.shape[-2] // 2, latents.shape[-1] // 2, 3, latents.device)
    image_ids[:, 1:] += IMAGE_START
    image_ids[:, 0] = 1
    text_ids = text_positions(condition["encoder_hidden_states"].shape[1], latents.device)
    ids = {"img_ids": image_ids, "txt_ids": text_ids}
    return {"hidden_states": pack(latents, 2), "timestep": timestep / 1000, **ids, **condition}


def _limit_token_norms(guided: Tensor, conditional: Tensor) -> Tensor:
    """Guidance does not raise the norm of a token, as in LongCat's pipeline (``enable_cfg_renorm``)."""
    guided_tokens, conditional_tokens = pack(guided, 2), pack(conditional, 2)
    norms = conditional_tokens.norm(dim=-1, keepdim=True) / (guided_tokens.norm(dim=-1, keepdim=True) + 1e-8)
    return unpack(guided_tokens * norms.clamp(max=1), guided, 2)


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="first",
    image_tokens=count_packed,
    inputs=_inputs,
    output=take_packed,
    pipeline="LongCatImagePipeline",
    encode=encode_plain,
    rescale_guided=_limit_token_norms,
    packing=2,
)
