"""Images to latents and back through a VAE, whichever way its kind scales latents."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_TILED = ("AutoencoderKLAllegro",)
"""Classes that work in whole tiles alone, and leave blank what these do not cover."""
_ONE_BY_ONE = (*_TILED, "AutoencoderKLHunyuanVideo15")
"""Classes that take one sample alone; HunyuanVideo 1.5's, as its attention's mask has no axis of heads."""


def prepare_vae(vae: Any) -> None:
    """Let a VAE of a class that works in tiles, or on one sample, alone do so."""
    if type(vae).__name__ in _TILED:
        vae.enable_tiling()
    if type(vae).__name__ in _ONE_BY_ONE:
        vae.enable_slicing()


def check_tiles(vae: Any, sample_shape: tuple[int, ...]) -> None:
    """Refuse latents that the tiles of a VAE, which works in tiles alone, do not cover.

    Args:
        vae: A VAE of diffusers, or none.
        sample_shape: Shape of the latents, (c, f, h, w) where the VAE is such a one.

    Raises:
        ValueError: An axis is shorter than a tile, or does not end with one.
    """
    if type(vae).__name__ not in _TILED:
        return
    units = frames_per_latent(vae), *(pixels_per_latent(vae),) * 2
    for name, size, tile, stride, unit in zip(
        ("frames", "rows", "columns"), sample_shape[1:], vae.kernel, vae.stride, units, strict=True
    ):
        if size < tile // unit or (size - tile // unit) % (stride // unit):
            raise ValueError(
                f"{type(vae).__name__} works in whole tiles: expected {tile // unit} latent {name} and a multiple of "
                f"{stride // unit}, got {size}, where a latent stands for {unit}; set height, width and num_frames"
            )


def is_video_vae(vae: Any) -> bool:
    """Whether a VAE works on videos, (b, c, f, h, w): it has convolutions over time."""
    return any(weight.ndim == 5 for weight in vae.parameters())


def pixels_per_latent(vae: Any) -> int:
    """Edge in pixels of the square that one latent stands for."""
    found = vae.config.get("scale_factor_spatial") or vae.config.get("spatial_compression_ratio")
    if found := found or getattr(vae, "spatial_compression_ratio", None):
        return int(found)
    return 2 ** len(vae.config.block_out_channels[1:]) * (2 if hasattr(vae, "bn") else 1)


def frames_per_latent(vae: Any) -> int:
    """Number of frames that each latent frame after the first stands for; the first one stands for one frame."""
    config = vae.config
    found = config.get("scale_factor_temporal") or config.get("temporal_compression_ratio")
    return int(found or getattr(vae, "temporal_compression_ratio", None) or 1)


@contextlib.contextmanager
def _placed(vae: Any, device: torch.device | str | None) -> Iterator[None]:
    """Keep a VAE on a device within the block, and on the CPU afterwards; where it is if no device is given.

    One whose class needs it is set to work in tiles, or on one sample at a time.
    """
    prepare_vae(vae)
    if device is None:
        yield
        return
    vae.to(device)
    try:
        yield
    finally:
        vae.to("cpu")


def decode(
    vae: Any, latents: Tensor, batch_size: int, device: torch.device | str | None = None, frames: bool = False
) -> Tensor:
    """Decode latents to images or videos.

    Args:
        vae: A VAE of diffusers.
        latents: As the ODE runs on them, (b, c, h, w) or (b, c, f, h, w).
        batch_size: Latents that the VAE decodes at once.
        device: Where the VAE is put for this, before it returns to the CPU; it is not moved if not given.
        frames: Whether to return all frames of videos instead of the first.

    Returns:
        Images in [-1, 1], (b, c, h, w), or videos, (b, c, f, h, w), if latents have several frames and ``frames`` is
        set; float32, on the CPU.
    """
    whole = frames and latents.ndim == 5 and latents.shape[2] > 1
    with _placed(vae, device):
        scaled = unscale(vae, latents.to(vae.device, torch.float32)).to(vae.dtype)
        found = (_decoded(vae, x) for x in scaled.split(batch_size))
        return torch.cat([x if whole or x.ndim == 4 else x[:, :, 0] for x in found])


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """The VAE's output in [-1, 1], on the CPU: in one call, or if memory runs out one by one, or else in tiles."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return _output(vae, latents)
    if len(latents) > 1:
        return torch.cat([_decoded(vae, x) for x in latents.split(1)])
    if not hasattr(vae, "enable_tiling") or getattr(vae, "use_tiling", False):
        return _output(vae, latents)
    warnings.warn("the VAE ran out of memory and decodes in tiles; look for seams, or draw smaller", stacklevel=2)
    vae.enable_tiling()
    return _output(vae, latents)


def _output(vae: Any, latents: Tensor) -> Tensor:
    """One call. A VAE that is conditioned on a time (LTX) decodes at time 0, its pipeline's default."""
    time = (latents.new_zeros(len(latents)),) if vae.config.get("timestep_conditioning") else ()
    check_tiles(vae, latents.shape[1:])
    found = vae.decode(latents, *time).sample
    if type(vae).__name__ in _TILED:  # frames before channels, and for the first latent as many as for the others
        found = found.transpose(1, 2)[:, :, : (latents.shape[2] - 1) * frames_per_latent(vae) + 1]
    return found.float().clamp(-1, 1).cpu()


def encode(vae: Any, images: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Encode images to the mean of the VAE's distribution.

    Args:
        vae: A VAE of diffusers.
        images: In [-1, 1], (b, c, h, w).
        device: As for `decode`.

    Returns:
        Latents as the ODE runs on them, (b, c, h, w), for a video VAE (b, c, 1, h, w); float32, on the CPU.
    """
    with _placed(vae, device):
        if type(vae).__name__ in _TILED:
            raise ValueError(f"{type(vae).__name__} encodes tiles of {vae.kernel[0]} frames, no images; leave them out")
        x = images.to(vae.device, vae.dtype)
        encoded = vae.encode(x.unsqueeze(2) if is_video_vae(vae) else x)
        is_distribution = hasattr(encoded, "latent_dist")  # AutoencoderTiny and AutoencoderDC return latents alone
        mean = encoded.latent_dist.mode() if is_distribution else encoded[0]
        return scale(vae, mean.float()).cpu()


def unscale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE decodes them, from latents as the ODE runs on them; the inverse of `scale`.

    For a video VAE, (b, c, h, w) becomes (b, c, 1, h, w).
    """
    config = vae.config
    if is_video_vae(vae):
        if latents.ndim == 4:
            latents = latents.unsqueeze(2)
        mean, std = _video_statistics(vae, latents.device)
        return latents * std + mean
    if hasattr(vae, "bn"):
        mean, variance = _patch_statistics(vae)
        patches = latents * (variance + config.batch_norm_eps).sqrt() + mean
        return torch.nn.functional.pixel_shuffle(patches, 2)
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)


def scale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the ODE runs on them, from latents as the VAE encodes them; the inverse of `unscale`."""
    config = vae.config
    if is_video_vae(vae):
        mean, std = _video_statistics(vae, latents.device)
        return (latents - mean) / std
    if hasattr(vae, "bn"):
        mean, variance = _patch_statistics(vae)
        patches = torch.nn.functional.pixel_unshuffle(latents, 2)
        return (patches - mean) / (variance + config.batch_norm_eps).sqrt()
    return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def _video_statistics(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a video VAE's latents, (1, c, 1, 1, 1), in its pipeline's use.

    Configurations (Wan, Qwen-Image) or buffers (LTX) hold them, beside a common factor; others have the factor alone.
    """
    buffers = dict(vae.named_buffers(recurse=False))
    given = (buffers.get(name, vae.config.get(name)) for name in ("latents_mean", "latents_std"))
    mean, std = (
        torch.as_tensor(default if x is None else x, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
        for x, default in zip(given, (0.0, 1.0), strict=True)
    )
    return mean, std / (vae.config.get("scaling_factor") or 1.0)


def _patch_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of the 2x2 patches of Flux2's latents, which its batch norm holds, (1, 4c, 1, 1)."""
    mean, variance = (x.view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
    return mean, variance
