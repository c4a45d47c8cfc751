"""CogVideoX (Yang et al. 2024, arXiv:2408.06072): video, joint attention, text first, v-prediction.

Its transformer takes frames before channels. Version 1.5 has patches of two latent frames: its videos have 5 frames, or
5 and a multiple of 8. Its pipeline pads other lengths at the front and drops that part of the video again.
"""

from __future__ import annotations

import math
from typing import Any

from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

from ardistill.families.encoding import Condition, encode_plain
from ardistill.families.family import HEAD, Family
from ardistill.families.tokens import centred


def _rotary(config: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rotary positions, of the middle of the training's grid in version 1 and of its first corner in 1.5."""
    if not config.use_rotary_positional_embeddings:
        return None
    patch, depth = config.patch_size, config.patch_size_t
    grid = latents.shape[-2] // patch, latents.shape[-1] // patch
    base = config.sample_height // patch, config.sample_width // patch
    placed: dict[str, Any] = {"crops_coords": centred(grid, base)}
    if depth is not None:
        placed = {"crops_coords": None, "grid_type": "slice", "max_size": base}
    frames = latents.shape[2] // (depth or 1)
    placed |= {"grid_size": grid, "temporal_size": frames, "device": latents.device}
    found: Any = get_3d_rotary_pos_embed(config.attention_head_dim, **placed)
    return found


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward."""
    rotary = _rotary(transformer.config, latents)
    return {"hidden_states": latents.transpose(1, 2), "timestep": timestep, "image_rotary_emb": rotary, **condition}


def _output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The prediction, (b, f, c, h, w) -> (b, c, f, h, w)."""
    return result[0].transpose(1, 2)


def count_frames_first(transformer: Any, hidden_states: Tensor) -> int:
    """Tokens of latents (b, f, c, h, w)."""
    config, (frames, _, height, width) = transformer.config, hidden_states.shape[1:]
    return math.prod((frames, height, width)) // ((config.patch_size_t or 1) * config.patch_size**2)


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=HEAD,
    text="first",
    image_tokens=count_frames_first,
    time_embedding="time_embedding",
    inputs=_inputs,
    output=_output,
    pipeline="CogVideoXPipeline",
    encode=encode_plain,
    video=True,
)
