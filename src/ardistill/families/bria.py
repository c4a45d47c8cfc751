"""Bria 3.2 (Bria AI 2025): Flux's layout with T5 alone, prompts padded with zeros, no embedded guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_plain, encode_unless_empty
from ardistill.families.family import HEAD, Family
from ardistill.families.grids import uniform_grid
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: packed latents, timesteps in [0, 1000], text at position 0."""
    tokens = condition["encoder_hidden_states"].shape[1]
    ids = {
        "img_ids": grid_positions(latents.shape[-2] // 2, latents.shape[-1] // 2, 3, latents.device),
        "txt_ids": torch.zeros(tokens, 3, dtype=torch.float32, device=latents.device),
    }
    return {"hidden_states": pack(latents, 2), "timestep": timestep, **ids, **condition}


def _grid(scheduler: Any, num_steps: int) -> list[float]:
    """Uniform where the shift is dynamic; else sigmas of whole timesteps, counted from the noisiest one."""
    if scheduler.config.get("use_dynamic_shifting"):
        return uniform_grid(scheduler, num_steps)
    last = scheduler.config.num_train_timesteps
    return [1 - int((last - 1) * i / max(num_steps - 1, 1)) / last for i in range(num_steps)]


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="first",
    image_tokens=count_packed,
    inputs=_inputs,
    output=take_packed,
    pipeline="BriaPipeline",
    encode=encode_plain,
    encode_negative=encode_unless_empty,
    reads_vae=True,
    grid=_grid,
    packing=2,
)
