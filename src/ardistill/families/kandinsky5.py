"""Kandinsky 5.0 Image (Arkhipkin et al. 2025, arXiv:2511.14993): channels last, text by cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import Family
from ardistill.families.grids import scheduler_grid


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: one frame with channels last, and the positions of its tokens."""
    where = latents.device
    sides = zip((1, *latents.shape[-2:]), transformer.config.patch_size, strict=True)
    return {
        "hidden_states": latents.permute(0, 2, 3, 1).unsqueeze(1),
        "timestep": timestep.to(latents.dtype),
        "visual_rope_pos": [torch.arange(n // size, device=where) for n, size in sides],
        "text_rope_pos": torch.arange(condition["encoder_hidden_states"].shape[1], device=where),
        **condition,
    }


def _output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The prediction, (b, 1, h, w, c) -> (b, c, h, w); the class gives a tensor alone."""
    return result.squeeze(1).permute(0, 3, 1, 2)


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings of Qwen2.5-VL, padded to the longest prompt, and CLIP's pooled ones."""
    embeddings, pooled, _ends = encode_prompt(pipeline, prompts)
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """A placeholder for the pooled embeddings."""
    return {"pooled_projections": torch.zeros(count, config.in_text_dim2)}


FAMILY = Family(
    block_lists=("visual_transformer_blocks",),
    attention=("self_attention",),
    head=("out_layer.modulation.out_layer", "out_layer.out_layer"),
    time_embedding="time_embeddings",
    inputs=_inputs,
    output=_output,
    pipeline="Kandinsky5T2IPipeline",
    encode=_encode,
    encodes_to_longest=True,
    example_extras=_example_extras,
    grid=scheduler_grid,
    result="image",
    ignores_vae_shift=True,
    channels_key="in_visual_dim",
)
