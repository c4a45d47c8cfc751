"""Latents as tokens, positions and sizes: what several families hand to their transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def pack(latents: Tensor, size: int) -> Tensor:
    """(b, c, h, w) -> (b, tokens, c size²)."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // size, size, w // size, size).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * size**2)


def unpack(tokens: Tensor, latents: Tensor, size: int) -> Tensor:
    """(b, tokens, c size²) -> (b, c, h, w), with height and width of ``latents``."""
    b, _, h, w = latents.shape
    return tokens.view(b, h // size, w // size, -1, size, size).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)


def take_packed(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The prediction of a transformer that is given packed latents, shaped as the latents before they were packed."""
    size = math.isqrt(result[0].shape[-1] // latents.shape[1])
    return unpack(result[0], latents, size)


def grid_positions(height: int, width: int, axes: int, device: torch.device) -> Tensor:
    """Positions (height * width, axes): row and column in axes 1 and 2, else 0."""
    ids = torch.zeros(height, width, axes, dtype=torch.float32, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)


def text_positions(tokens: int, device: torch.device) -> Tensor:
    """Positions (tokens, 3): the token's index in axes 1 and 2, where images have row and column."""
    ids = torch.zeros(tokens, 3, dtype=torch.float32, device=device)
    ids[:, 1:] = torch.arange(tokens, device=device)[:, None]
    return ids


def centred(size: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last corner of a grid (height, width) scaled to fit in the middle of a base grid of positions."""
    scale = min(base[0] / size[0], base[1] / size[1])
    height, width = (round(n * scale) for n in size)
    top, left = round((base[0] - height) / 2), round((base[1] - width) / 2)
    return (top, left), (top + height, left + width)


def pixel_size(latents: Tensor, *more: float) -> Tensor:
    """Height and width in pixels of an autoencoder of factor 8, then ``more``; one row per sample."""
    sizes = *(8.0 * n for n in latents.shape[-2:]), *more
    return torch.stack([latents.new_full((len(latents),), x) for x in sizes], dim=1)  # filled in on the device


def count_packed(transformer: Any, hidden_states: Tensor) -> int:
    """Image tokens of a transformer that is given tokens (b, t, d)."""
    return hidden_states.shape[1]


def count_video_patches(transformer: Any, hidden_states: Tensor) -> int:
    """Tokens of a transformer that cuts latents (b, c, f, h, w) into patches in space and time itself."""
    config = transformer.config
    return math.prod(hidden_states.shape[2:]) // (config.patch_size_t * config.patch_size**2)
