"""LTX-Video (HaCohen et al. 2024, arXiv:2501.00103): video, text by cross-attention, tokens of single latents."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ardistill.families.encoding import Condition, encode_masked
from ardistill.families.family import Family, mask_condition
from ardistill.families.grids import linear_mu

FRAME_RATE = 25
"""Frames per second that positions in time are for, the default of its pipeline."""
SPACE, TIME = 32, 8
"""Pixels and frames that a latent of its autoencoder stands for; positions are in pixels and seconds."""


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: tokens (b, f h w, c), their numbers along each axis, and their size."""
    frames, height, width = latents.shape[2:]
    size = {"num_frames": frames, "height": height, "width": width}
    scale = TIME / FRAME_RATE, SPACE, SPACE
    tokens = latents.flatten(2).transpose(1, 2)
    return {"hidden_states": tokens, "timestep": timestep, **size, "rope_interpolation_scale": scale, **condition}


def _output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The prediction, (b, f h w, c) -> (b, c, f, h, w)."""
    return result[0].transpose(1, 2).reshape(latents.shape)


def _mu(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Linear in the tokens, which are single latents."""
    return linear_mu(config, math.prod(sample_shape[1:]))


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=("proj_out",),
    inputs=_inputs,
    output=_output,
    pipeline="LTXPipeline",
    encode=encode_masked,
    example_extras=mask_condition,
    mu=_mu,
    default_size=16,
    video=True,
)
