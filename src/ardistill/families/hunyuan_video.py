"""HunyuanVideo (Kong et al. 2024, arXiv:2412.03603): video, joint attention, text last, embedded guidance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import HEAD, Family, mask_condition, pooled_condition
from ardistill.families.tokens import count_video_patches


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: the guidance scale counts in thousandths."""
    guidance = {"guidance": 1000 * condition["guidance"]} if "guidance" in condition else {}
    return {"hidden_states": latents, "timestep": timestep, **condition, **guidance}


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Llama's embeddings with a mask of the tokens that count, and CLIP's pooled ones."""
    embeddings, pooled, mask = encode_prompt(pipeline, prompts)
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask, "pooled_projections": pooled}


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """A mask of tokens that all count, and pooled embeddings."""
    return mask_condition(config, count, text_tokens) | pooled_condition(config, count, text_tokens)


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="last",
    image_tokens=count_video_patches,
    scale_is_input_of=("HunyuanVideoPipeline",),
    inputs=_inputs,
    pipeline="HunyuanVideoPipeline",
    encode=_encode,
    example_extras=_example_extras,
    default_size=90,
    video=True,
)
