"""Images to latents and back through a VAE, whichever way its kind scales latents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def is_video_vae(vae: Any) -> bool:
    """Whether a VAE works on videos (Wan, Qwen-Image): a mean and a deviation per channel take the place of a scale."""
    return vae.config.get("latents_mean") is not None and vae.config.get("scaling_factor") is None


def pixels_per_latent(vae: Any) -> int:
    """Edge in pixels of the square that one latent stands for."""
    if vae.config.get("scale_factor_spatial"):
        return vae.config.scale_factor_spatial
    halvings = vae.config.get("temperal_downsample") or vae.config.block_out_channels[1:]
    return 2 ** len(halvings) * (2 if hasattr(vae, "bn") else 1)


@contextlib.contextmanager
def _placed(vae: Any, device: torch.device | str | None) -> Iterator[None]:
    """Keep a VAE on a device within the block, and on the CPU afterwards; where it is if no device is given."""
    if device is None:
        yield
        return
    vae.to(device)
    try:
        yield
    finally:
        vae.to("cpu")


def decode(vae: Any, latents: Tensor, batch_size: int, device: torch.device | str | None = None) -> Tensor:
    """Decode latents to images; of a video, the first frame.

    Args:
        vae: A VAE of diffusers.
        latents: As the ODE runs on them, (b, c, h, w) or (b, c, f, h, w).
        batch_size: Latents that the VAE decodes at once.
        device: Where the VAE is put for this, before it returns to the CPU; it is not moved if not given.

    Returns:
        Images in [-1, 1], (b, c, h, w), float32, on the CPU.
    """
    with _placed(vae, device):
        scaled = unscale(vae, latents.to(vae.device, torch.float32)).to(vae.dtype)
        images = [vae.decode(x).sample.float().clamp(-1, 1).cpu() for x in scaled.split(batch_size)]
    return torch.cat([x[:, :, 0] if x.ndim == 5 else x for x in images])


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
        x = images.to(vae.device, vae.dtype)
        encoded = vae.encode(x.unsqueeze(2) if is_video_vae(vae) else x)
        is_distribution = hasattr(encoded, "latent_dist")  # AutoencoderTiny returns latents alone
        mean = encoded.latent_dist.mode() if is_distribution else encoded.latents
        return scale(vae, mean.float()).cpu()


def unscale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE decodes them, from latents as the ODE runs on them; the inverse of `scale`.

    For a video VAE, (b, c, h, w) becomes (b, c, 1, h, w).
    """
    config = vae.config
    if is_video_vae(vae):
        if latents.ndim == 4:
            latents = latents.unsqueeze(2)
        mean, std = _video_statistics(config, latents.device)
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
        mean, std = _video_statistics(config, latents.device)
        return (latents - mean) / std
    if hasattr(vae, "bn"):
        mean, variance = _patch_statistics(vae)
        patches = torch.nn.functional.pixel_unshuffle(latents, 2)
        return (patches - mean) / (variance + config.batch_norm_eps).sqrt()
    return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def _video_statistics(config: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a video VAE's latents, (1, c, 1, 1, 1)."""
    mean, std = (
        torch.tensor(x, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
        for x in (config.latents_mean, config.latents_std)
    )
    return mean, std


def _patch_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of the 2x2 patches of Flux2's latents, which its batch norm holds, (1, 4c, 1, 1)."""
    mean, variance = (x.view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
    return mean, variance
