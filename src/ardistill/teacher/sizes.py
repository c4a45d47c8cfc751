"""Sizes of images and videos in pixels and frames, and the shapes of their latents."""

from __future__ import annotations

from typing import Any

from ardistill.families import family_of
from ardistill.teacher.vae import check_tiles, frames_per_latent


def latent_shape(
    transformer: Any, vae: Any, pixels_per_latent: int, height: int | None, width: int | None, num_frames: int
) -> tuple[int, ...]:
    """Shape of the latents of an image, (c, h, w), or a video, (c, f, h, w).

    Args:
        transformer: A transformer of a known family.
        vae: The pipeline's VAE; None if it draws pixels.
        pixels_per_latent: Edge in pixels of the square that one latent stands for.
        height: In pixels.
        width: In pixels.
        num_frames: Number of frames of a video.

    Raises:
        ValueError: Height or width is missing or not a multiple of what VAE and packing need, the class only takes
            squares, or the VAE does not support the number of frames.
    """
    family = family_of(transformer)
    if height is None or width is None:
        raise ValueError("expected both height and width, or neither")
    unit = pixels_per_latent * family.packing
    if height < 1 or width < 1 or height % unit or width % unit:
        raise ValueError(f"expected a size in multiples of {unit} pixels, got {height}x{width}")
    if family.square and height != width:
        raise ValueError(f"{type(transformer).__name__} draws squares alone, got {height}x{width}")
    every = 1 if vae is None else frames_per_latent(vae)
    frames, rest = divmod(num_frames - 1, every)
    shape = family.latent_shape(transformer, height // pixels_per_latent, width // pixels_per_latent, frames + 1)
    if num_frames < 1 or rest or (frames and len(shape) == 3) or (len(shape) == 4 and shape[1] > frames + 1):
        patch = transformer.config.get("patch_size_t") or 1
        known = (
            f"{(patch - 1) * every + 1} and a multiple of {patch * every}" if len(shape) == 4 else "1: it draws images"
        )
        raise ValueError(f"expected a number of frames of {known}, got {num_frames}")
    check_tiles(vae, shape)
    return shape


def pixel_size(sample_shape: tuple[int, ...], vae: Any, pixels_per_latent: int) -> dict[str, int]:
    """``height`` and ``width`` in pixels, and for video ``num_frames``, of samples of a shape; undoes ``latent_shape``.

    Args:
        sample_shape: Shape of the latents, (c, h, w) or (c, f, h, w).
        vae: The pipeline's VAE; None if it draws pixels.
        pixels_per_latent: Edge in pixels of the square that one latent stands for.
    """
    height, width = (side * pixels_per_latent for side in sample_shape[-2:])
    every = 1 if vae is None else frames_per_latent(vae)
    frames = {"num_frames": (sample_shape[1] - 1) * every + 1} if len(sample_shape) == 4 else {}
    return {"height": height, "width": width} | frames
