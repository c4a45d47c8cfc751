"""Mochi 1 (Genmo 2024): video, joint attention row by row without padding, text last, time from 0 (noise) to the image.

Its scheduler has ``invert_sigmas``: times and predictions are those of a reversed flow (`ardistill.core.knots`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ardistill.core.binding import bypassed
from ardistill.core.history import _NOW, _TRACED, History, Layout, _BlockCall, attend
from ardistill.families.encoding import Condition, encode_masked
from ardistill.families.family import HEAD, Family, mask_condition


def attend_row(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Stand in for ``scaled_dot_product_attention`` where each row calls it by itself, without the prompt's padding.

    Keys and values of the image's tokens are noted row by row, and joined when the last row has attended.
    """
    now = _TRACED if torch.compiler.is_compiling() else _NOW
    call: Any = now.block
    if call is None or (call.made and isinstance(call.made[0], tuple)):
        raise bypassed("another")
    layout, rows = call.layout, call.made[0] if call.made else []
    if layout.folded is not None:
        seen = layout.folded(rows, call.history.mask)
    else:
        seen = [tuple(x[len(rows) : len(rows) + 1] for x in pair) for step in call.earlier for pair in step]
    now.block = _BlockCall(History(call.history.mask), Layout(), call.modules, [seen])
    found = attend(query, key, value, **options)
    now.block = call
    rows.append(tuple(x[:, :, : layout.image_tokens] for x in (key, value)))
    whole = len(rows) == len(layout.image_start)
    call.made = [tuple(torch.cat(x) for x in zip(*rows, strict=True)) if whole else rows]
    return found


def count_frame_patches(transformer: Any, hidden_states: Tensor) -> int:
    """Tokens of latents (b, c, f, h, w) that are cut into square patches of single frames."""
    return math.prod(hidden_states.shape[2:]) // transformer.config.patch_size**2


def start_at_once(arguments: dict[str, Any]) -> Tensor:
    """Index of each row's first image token: the image stands before the text."""
    return arguments["encoder_attention_mask"].new_zeros(len(arguments["hidden_states"]), dtype=torch.long)


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings and mask; each by itself beside an empty one, as the pipeline may blank a batch that ends with it."""
    parts = [[prompt] for prompt in prompts] if "" in prompts else [prompts]
    found = [encode_masked(pipeline, part) for part in parts]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _grid(scheduler: Any, num_steps: int) -> list[float]:
    """Half of the steps remove 1/40 of the noise, linearly; the other half takes the rest, quadratically."""
    if num_steps == 1:  # of which its pipeline has no grid
        return [1.0]
    half = num_steps // 2
    slope = 0.025 / half
    bend = (1 - slope * num_steps) / (num_steps - half) ** 2
    return [1 - slope * i - bend * max(i - half, 0) ** 2 for i in range(num_steps)]


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=HEAD,
    text="last",
    image_tokens=count_frame_patches,
    image_start=start_at_once,
    by_row=("MochiAttnProcessor2_0.__call__", attend_row),
    pipeline="MochiPipeline",
    encode=_encode,
    example_extras=mask_condition,
    grid=_grid,
    default_size=60,
    video=True,
)
