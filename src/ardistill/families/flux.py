"""FLUX.1 (Black Forest Labs 2024): joint attention with packed latents, text before the image, embedded guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import HEAD, Family, pooled_condition
from ardistill.families.tokens import count_packed, grid_positions, pack, unpack


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    height, width = (n // 2 for n in latents.shape[-2:])
    tokens = condition["encoder_hidden_states"].shape[1]
    ids = {
        "img_ids": grid_positions(height, width, 3, latents.device),
        "txt_ids": torch.zeros(tokens, 3, dtype=torch.float32, device=latents.device),
    }
    return {"hidden_states": pack(latents, 2), "timestep": timestep / 1000, **ids, **condition}


def _output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return unpack(result[0], latents, 2)


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    found = encode_prompt(pipeline, prompts, None)
    return {"encoder_hidden_states": found[0], "pooled_projections": found[1]}


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="first",
    image_tokens=count_packed,
    pipeline_scale_is_input=True,
    inputs=_inputs,
    output=_output,
    pipeline="FluxPipeline",
    encode=_encode,
    more_conditions=pooled_condition,
    packing=2,
)
