"""FLUX.2 (Black Forest Labs 2025): joint attention over latents of 1 by 1 patches, text before the image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_plain
from ardistill.families.family import HEAD, Family
from ardistill.families.tokens import count_packed, grid_positions, pack, take_packed


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: packed latents, timesteps in [0, 1], and positions on four axes."""
    batch, tokens = condition["encoder_hidden_states"].shape[:2]
    text_ids = torch.zeros(tokens, 4, dtype=torch.float32, device=latents.device)
    text_ids[:, 3] = torch.arange(tokens, device=latents.device)
    image_ids = grid_positions(latents.shape[-2], latents.shape[-1], 4, latents.device)
    ids = {"img_ids": image_ids.repeat(batch, 1, 1), "txt_ids": text_ids.repeat(batch, 1, 1)}
    return {"hidden_states": pack(latents, 1), "timestep": timestep / 1000, **ids, **condition}


def _mu(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Two lines in the image tokens, fitted at 10 and at 200 steps, and between them linear in the steps."""
    tokens = math.prod(sample_shape[-2:])
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return at_200 + slope * (num_steps - 200)


FAMILY = Family(
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="first",
    image_tokens=count_packed,
    scale_is_input_of=("Flux2Pipeline",),
    inputs=_inputs,
    output=take_packed,
    pipeline="Flux2Pipeline",
    encode=encode_plain,
    mu=_mu,
    default_size=64,
)
