"""CogView4 (Zheng et al. 2024, arXiv:2403.05121, and its successor): joint attention, text before the image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_plain
from ardistill.families.family import HEAD, Family
from ardistill.families.tokens import pixel_size


def give_sizes(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: the image's size in pixels, twice, and no crop, besides the latents."""
    size = pixel_size(latents)
    facts = {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
    return {"hidden_states": latents, "timestep": timestep, **facts, **condition}


def _mu(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Follows the side of the image instead of its area."""
    tokens = math.prod(sample_shape[-2:]) // 4
    base, most = config.get("base_shift", 0.25), config.get("max_shift", 0.75)
    return base + most * math.sqrt(tokens / config.get("base_image_seq_len", 256))


def _grid(scheduler: Any, num_steps: int) -> list[float]:
    """Whole timesteps from the last one to 1."""
    last = scheduler.config.num_train_timesteps
    return [int(last + (1 - last) * i / max(num_steps - 1, 1)) / last for i in range(num_steps)]


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=HEAD,
    text="first",
    inputs=give_sizes,
    pipeline="CogView4Pipeline",
    encode=encode_plain,
    encodes_to_longest=True,
    mu=_mu,
    grid=_grid,
    shift_times=False,
)
