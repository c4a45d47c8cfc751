"""Image tensors to 8-bit pixels and back: -1 is byte 0, 1 is byte 255."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def to_bytes(images: Tensor) -> Tensor:
    """Round images to 8-bit pixels; values outside [-1, 1] are clamped.

    Args:
        images: In [-1, 1], of any floating-point dtype, shape and device.

    Returns:
        uint8, of the same shape, on the same device.
    """
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(pixels: Tensor) -> Tensor:
    """Scale 8-bit pixels to images in [-1, 1]; `to_bytes` inverts it exactly.

    Args:
        pixels: uint8, of any shape and device.

    Returns:
        float32, of the same shape, on the same device.
    """
    return pixels.float() / 127.5 - 1


def to_rgb(images: Tensor) -> Tensor:
    """8-bit RGB pixels in the layout of image files.

    Args:
        images: In [-1, 1], shape (n, c, h, w), c = 1 or 3; a grey channel is repeated.

    Returns:
        uint8, shape (n, h, w, 3), contiguous, on the CPU.
    """
    return to_bytes(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().cpu()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """RGB pictures of images in [-1, 1], shape (n, c, h, w), c = 1 or 3."""
    return [Image.fromarray(pixels) for pixels in to_rgb(images).numpy()]
