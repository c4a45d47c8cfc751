"""HunyuanImage 2.1 (Tencent 2025): image before the text of two encoders, of which the second reads quoted words."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition
from ardistill.families.family import HEAD, Family


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: each under its own name.

    Raises:
        ValueError: It is the distilled model, whose network takes the time of the next step, too.
    """
    if transformer.config.use_meanflow or transformer.config.guidance_embeds:
        raise ValueError("this HunyuanImage was distilled already; use the model that it was made from as the teacher")
    times = timestep.to(latents.dtype)  # the class takes from it the dtype that it embeds time in
    return {"hidden_states": latents, "timestep": times, **condition}


def count_patches_by_side(transformer: Any, hidden_states: Tensor) -> int:
    """Image tokens of a transformer whose patch has a size for each side."""
    return math.prod(hidden_states.shape[-2:]) // math.prod(transformer.config.patch_size)


def encode_two_texts(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings and mask of the prompts, and of the words in quotation marks; there, all are masked if none are."""
    embeddings, mask, words, words_mask = pipeline.encode_prompt(prompts, batch_size=len(prompts))
    return {
        "encoder_hidden_states": embeddings,
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": words,
        "encoder_attention_mask_2": words_mask,
    }


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """Placeholders for masks, and for the embeddings of the second encoder, which reads 128 tokens."""
    words = torch.zeros(count, 128, config.text_embed_2_dim or 1)
    masks = {f"encoder_attention_mask{x}": torch.ones(count, n) for x, n in (("", text_tokens), ("_2", 128))}
    return {"encoder_hidden_states_2": words} | {name: x.long() for name, x in masks.items()}


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="last",
    image_tokens=count_patches_by_side,
    guidance_off=("distilled_guidance_scale", 1.0),
    left_out=("guider", "ocr_guider"),
    inputs=_inputs,
    pipeline="HunyuanImagePipeline",
    encode=encode_two_texts,
    example_extras=_example_extras,
    default_size=64,
)
