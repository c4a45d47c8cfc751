"""HunyuanVideo 1.5 (Tencent 2025): text to video, joint attention, text of two encoders last.

The network takes a first frame, too, as further channels of its input and as tokens of an image encoder. In text to
video both are absent: the channels are zeros, and of the image's tokens, which its pipeline masks, there are none here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition
from ardistill.families.family import HEAD, Family
from ardistill.families.hunyuan_image import encode_two_texts
from ardistill.families.tokens import count_video_patches

GLYPH_TOKENS = 256
"""Tokens of the second encoder, which reads the words in quotation marks."""


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: latents with channels of zeros, (b, 65, f, h, w), no image.

    Raises:
        ValueError: It is the super-resolution model, whose network takes the time of the next step, too.
    """
    config = transformer.config
    if config.use_meanflow:
        raise ValueError("this HunyuanVideo 1.5 was distilled already; use a model of text to video as the teacher")
    zeros = latents.new_zeros(len(latents), config.in_channels - latents.shape[1], *latents.shape[2:])
    return {
        "hidden_states": torch.cat([latents, zeros], dim=1),
        "timestep": timestep.to(latents.dtype),  # the class takes from it the dtype that it embeds time in
        "image_embeds": latents.new_zeros(len(latents), 0, config.image_embed_dim),
        **condition,
    }


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """What HunyuanImage's prompts are encoded to, with masks of booleans."""
    found = encode_two_texts(pipeline, prompts)
    return {name: x.bool() if "mask" in name else x for name, x in found.items()}


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """Placeholders for masks, and for the embeddings of the second encoder."""
    return {
        "encoder_attention_mask": torch.ones(count, text_tokens, dtype=torch.bool),
        "encoder_hidden_states_2": torch.zeros(count, GLYPH_TOKENS, config.text_embed_2_dim),
        "encoder_attention_mask_2": torch.ones(count, GLYPH_TOKENS, dtype=torch.bool),
    }


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn",),
    head=HEAD,
    text="last",
    image_tokens=count_video_patches,
    guidance_off=("", 1.0),
    replaced={"guider": ("ClassifierFreeGuidance", {"guidance_scale": 1.0})},
    inputs=_inputs,
    pipeline="HunyuanVideo15Pipeline",
    encode=_encode,
    example_extras=_example_extras,
    preparation="pipeline.vae.enable_slicing()\n",
    reads_vae=True,
    channels_key="out_channels",
    default_size=40,
    video=True,
)
