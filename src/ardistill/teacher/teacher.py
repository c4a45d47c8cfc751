"""A frozen diffusion transformer with its scheduler and guidance, and the ODE that it defines."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from ardistill.core.knots import Knots
from ardistill.devices import Device, device_of, resolve_device, resolve_weights, weights_of
from ardistill.families import Condition, Family, family_of
from ardistill.families.grids import uniform_grid
from ardistill.files import remembered_fingerprint
from ardistill.teacher import sizes, vae
from ardistill.teacher.experts import SECOND, boundary_of, move_second
from ardistill.teacher.guidance import GuidedPrediction
from ardistill.teacher.ode import Trajectory, integrate
from ardistill.teacher.padding import can_join, join_conditions
from ardistill.teacher.pipeline import fingerprint_of, load_pipeline
from ardistill.teacher.schedule import knots_from_scheduler
from ardistill.teacher.seeding import seeded_generator
from ardistill.teacher.source import Source, find_source
from ardistill.teacher.text import TextEncoders
from ardistill.teacher.unread import move, unread_files


class Teacher:
    """A frozen transformer of a known family, its scheduler and its guidance.

    Args:
        transformer: A transformer; frozen here and put in evaluation mode, so that no label is dropped.
        scheduler: The teacher's diffusers scheduler; only its noise schedule is used.
        guidance_scale: Scale of classifier-free guidance (Ho & Salimans 2022); 1 means none.
        guidance_channels: Number of channels, counted from the first, that guidance is applied to (the original DiT
            guided 3 of 4); all if not given.
        companions: The pipeline's other components and settings, such as ``vae`` and ``id2label``; a teacher without a
            ``vae`` draws pixels.
        name: Name or path that it was loaded by.
        latent_shape: Shape of a sample, (c, h, w) or (c, f, h, w); from the transformer's config if not given.
        negative_prompt: Prompt of the unconditional branch, for a teacher that is conditioned on text.

    Raises:
        ValueError: The transformer's class is unknown, guidance is below 1, or there are fewer channels than
            ``guidance_channels``.
    """

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        guidance_scale: float = 1.0,
        guidance_channels: int | None = None,
        companions: Mapping[str, Any] | None = None,
        name: str = "",
        latent_shape: tuple[int, ...] | None = None,
        negative_prompt: str = "",
    ) -> None:
        if guidance_scale < 1:
            raise ValueError(f"expected a guidance scale of 1 (none) or more, got {guidance_scale}")
        self.family: Family = family_of(transformer)
        channels = self.family.channels(transformer)
        if guidance_channels is not None and not 1 <= guidance_channels <= channels:
            raise ValueError(f"expected 1 to {channels} guided channels, got {guidance_channels}")
        self.transformer = transformer.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.guidance_scale = guidance_scale
        self.guidance_channels = guidance_channels
        self.companions = companions or {}
        self.name = name
        self.sample_shape = latent_shape or self.family.latent_shape(transformer)
        self.negative_prompt = negative_prompt
        self.source: Source | None = None
        """Where it was loaded from; None if it was made of a transformer."""
        self._vae_device: Device = None
        self._unconditional: Condition | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 1,
        device: Device = None,
        guidance_scale: float = 1.0,
        guidance_channels: int | None = None,
        latent_shape: tuple[int, ...] | None = None,
        negative_prompt: str = "",
        weights: str = "auto",
        in_parts: bool = False,
    ) -> Teacher:
        """Load a zoo teacher (``zoo/fashion``), a diffusers folder, a Hub id or an original DiT's ``.pt`` file.

        Args:
            name: Any of these. A Hub id is downloaded once, whole. ``@REVISION`` may follow a Hub id, and ``:VARIANT``
                where there are several variants of the weights, as in ``org/model@main:fp16``. The teacher's ``name``
                will find it from any folder.
            height: Image height in pixels; the model's default if not given.
            width: Image width in pixels; the model's default if not given.
            num_frames: Number of frames of a video.
            device: Device of the transformer, and of VAE and text encoders while they work; the best if not given.
            guidance_scale: The class documents this and the following options.
            latent_shape: May not stand beside height, width or num_frames.
            weights: ``float32``, ``bfloat16``, ``int8`` or ``nf4`` (linear layers quantised, all else bfloat16), or
                ``auto``: bfloat16 on a GPU that computes in it, else float32.
            in_parts: Leave the blocks' weights in their files: with ``shard``, each process reads its part of them.

        Raises:
            ValueError: No transformer and scheduler that are supported are there, stored weights are quantised, the
                device is missing or lacks this type, or a size is given twice, or in pixels without a VAE.
        """
        is_sized = height is not None or width is not None or num_frames != 1
        if is_sized and latent_shape is not None:
            raise ValueError("expected a size in pixels and frames, or latent_shape, got both; leave one out")
        where = resolve_device(device)
        weights, source = resolve_weights(weights, where), find_source(name)
        transformer, scheduler, companions = load_pipeline(source, weights, where, in_parts)
        if is_sized and companions is None:
            raise ValueError(f"{source.folder} has no VAE that turns pixels into latents; give latent_shape instead")
        options = guidance_scale, guidance_channels, companions, source.name, latent_shape, negative_prompt
        teacher = cls(transformer, scheduler, *options)
        teacher.source = source
        if is_sized:
            teacher.sample_shape = teacher.latent_shape(height, width, num_frames)
        return teacher.to(where)

    def latent_shape(self, height: int | None, width: int | None, num_frames: int = 1) -> tuple[int, ...]:
        """Shape of the latents of an image or video, (c, h, w) or (c, f, h, w).

        Args:
            height: In pixels.
            width: In pixels.
            num_frames: Number of frames of a video.

        Raises:
            ValueError: A size is missing, or transformer or VAE do not support it.
        """
        return sizes.latent_shape(self.transformer, self.vae, self.pixels_per_latent, height, width, num_frames)

    @property
    def draws_images(self) -> bool:
        """Whether its samples can be shown as images: through its VAE, or because it draws pixels."""
        return self.vae is not None or self.family.channels(self.transformer) in (1, 3)

    @property
    def image_channels(self) -> int:
        """Number of channels of its images: 1 for grey, else 3."""
        channels = self.sample_shape[0] if self.vae is None else self.vae.config.get("out_channels")
        return 1 if channels == 1 else 3

    @property
    def pixels_per_latent(self) -> int:
        """Edge in pixels of the square that one latent stands for; 1 for a teacher that draws pixels."""
        return getattr(self.companions, "pixels_per_latent", 1)

    @property
    def takes_text(self) -> bool:
        """Whether it is conditioned on prompts; otherwise on class labels."""
        return self.family.encode is not None

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network embeds the guidance scale (Flux-dev), so that there is no unconditional branch."""
        return self.family.embeds_guidance(self.transformer)

    @property
    def num_classes(self) -> int:
        """Number of class labels, without the unconditional one."""
        config = self.transformer.config
        return config.get("num_embeds_ada_norm") or config.num_classes

    @property
    def pipeline_class(self) -> str:
        """Name of diffusers' pipeline class for this teacher."""
        named = getattr(self.companions, "pipeline_class", "")
        return named if hasattr(diffusers, named) else self.family.pipeline

    @property
    def second(self) -> tuple[Any, float] | None:
        """The transformer for low noise of a teacher of two (Wan 2.2), and the time below which it predicts."""
        boundary = boundary_of(self.companions, self.scheduler)
        return None if boundary is None else (self.companions[SECOND].to(self.device), boundary)

    @property
    def device(self) -> torch.device:
        """The device of the transformer, where the work is done."""
        return device_of(self.transformer)

    @property
    def weights(self) -> str:
        """Type of the transformer's weights: float32, bfloat16, int8 or nf4."""
        return weights_of(self.transformer)

    def to(self, device: torch.device | str) -> Teacher:
        """Move the transformer now, unless it was loaded ``in_parts``, and the VAE whenever it is used."""
        self.move_transformer(device)
        self.move_vae(device)
        return self

    def move_transformer(self, device: torch.device | str) -> None:
        """Move the transformer now, unless it was loaded ``in_parts``; of two, also the second one if it was used."""
        move(self.transformer, device)
        move_second(self.companions, device)

    def move_vae(self, device: torch.device | str) -> None:
        """Move the VAE whenever it is used; it then returns to the CPU."""
        self._vae_device = device

    @property
    def vae(self) -> Any:
        """The VAE, where it rests; None for a teacher that draws pixels."""
        found = self.companions.get("vae")
        if self.family.ignores_vae_shift and found is not None:
            found.register_to_config(shift_factor=None)
        return found

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1], (b, c, h, w), to latents, on the CPU: to the mean of the VAE's distribution."""
        if self.vae is None:
            return images.cpu()
        latents = vae.encode(self.vae, images, self._vae_device)
        return latents[:, :, 0] if latents.ndim > 1 + len(self.sample_shape) else latents

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 16, frames: bool = False) -> Tensor:
        """Decode latents to images or videos, through the VAE, or clamped for a teacher that draws pixels.

        Args:
            latents: (b, c, h, w) or (b, c, f, h, w).
            batch_size: Latents that the VAE decodes at once.
            frames: Whether to return all frames of videos instead of the first.

        Returns:
            In [-1, 1], on the CPU: images, (b, c, h, w); with ``frames``, of several latent frames, (b, c, f, h, w).

        Raises:
            ValueError: There is no VAE, and the latents are not pixels.
        """
        if self.vae is not None:
            return vae.decode(self.vae, latents, batch_size, self._vae_device, frames)
        if not self.draws_images:
            name, channels = self.name or "the teacher", self.family.channels(self.transformer)
            raise ValueError(f"{name} draws latents of {channels} channels, and there is no VAE beside it")
        return latents.float().clamp(-1, 1).cpu()

    @functools.cached_property
    def text(self) -> TextEncoders:
        """The text encoders of a teacher that is conditioned on prompts."""
        return TextEncoders(self.family, self.pipeline_class, self.companions, self.scheduler, self.transformer.config)

    def encode(
        self,
        prompts: Sequence[str],
        batch_size: int = 16,
        negative: bool = False,
        device: torch.device | str | None = None,
        longest: str | None = None,
        dtype: torch.dtype | None = torch.float32,
        first: int | None = None,
    ) -> Condition:
        """Encode prompts with the text encoders of the teacher's pipeline.

        Args:
            prompts: One or more; repeated ones are encoded once.
            batch_size: Prompts encoded at once.
            negative: Whether the prompts belong to the unconditional branch.
            device: Where the text encoders run before they return to the CPU; the transformer's device if not given.
            longest: For a pipeline that pads to the longest prompt: the longest one of the whole set that these belong
                to, from ``text.longest_prompt``; the longest of these if not given.
            dtype: Dtype of the embeddings; None: the dtype that the text encoders were saved in.
            first: Number of the first prompt if these are consecutive prompts of a larger set. Each prompt then has a
                fixed place in a full batch, so that its embedding is the same to the last bit in any selection.

        Returns:
            The condition, one row per prompt, on the CPU.

        Raises:
            ValueError: The teacher is conditioned on class labels, there are no prompts, or the prompts' lengths
                differ and the pipeline gives no mask.
        """
        if not self.takes_text:
            raise ValueError(f"{self.name or 'the teacher'} is conditioned on class labels, not on prompts")
        if not prompts:
            raise ValueError("expected one prompt or more, got none")
        where = resolve_device(device, self.device)
        return self.text.encode(prompts, where, batch_size, negative, longest, dtype, first)

    def encode_negative(self, device: torch.device | str | None = None) -> Condition:
        """The condition of the negative prompt, one row; encoded once."""
        if self._unconditional is None:
            self._unconditional = self.encode([self.negative_prompt], negative=True, device=device)
        return self._unconditional

    def null_condition(self, condition: Condition) -> Condition:
        """The condition of the unconditional branch: the negative prompt, or the label after the last one."""
        if self.takes_text:
            like = next(iter(condition.values()))
            self._unconditional = null = send_to_device(self.encode_negative(), like.device)  # once per device
            return {name: value.expand(len(like), *value.shape[1:]) for name, value in null.items()}
        return {"class_labels": torch.full_like(condition["class_labels"], self.num_classes)}

    def check_condition(self, condition: Condition) -> None:
        """Check class labels.

        Raises:
            ValueError: A label is out of range.
        """
        if self.takes_text:
            return
        labels, count = condition["class_labels"], self.num_classes
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"expected labels in 0..{count - 1}, got {int(labels.min())}..{int(labels.max())}")

    def fingerprint(self) -> str:
        """SHA-256 of the transformer's weights in float32, with names and shapes; of others loaded, the files' own."""
        changed = self.weights != "float32" or unread_files(self.transformer) is not None
        if self.source is not None and (changed or SECOND in self.companions):
            return fingerprint_of(self.source)
        return remembered_fingerprint(self.transformer.state_dict())

    def knots(self, num_steps: int) -> Knots:
        """The solver's grid: trailing timesteps, or flow-matching sigmas as the teacher's pipeline spaces them.

        Args:
            num_steps: Number of solver steps.

        Raises:
            ValueError: The scheduler is of an unknown kind, or one of its options is not supported.
        """
        config, mu = self.scheduler.config, None
        if config.get("use_dynamic_shifting"):
            mu = self.family.mu(config, self.sample_shape, num_steps)
        grid = uniform_grid if getattr(self.companions, "has_uniform_sigmas", False) else self.family.grid
        return knots_from_scheduler(self.scheduler, num_steps, mu, self.family.shift_times, grid)

    def noise(self, seed: int, shard: int, count: int, sample_shape: tuple[int, ...] | None = None) -> Tensor:
        """Initial noise of a shard, (count, c, h, w): a pure function of (seed, shard), drawn on the CPU."""
        shape, generator = sample_shape or self.sample_shape, seeded_generator(f"{seed}/{shard}")
        return torch.randn(count, *shape, generator=generator, dtype=torch.float32, device="cpu")

    def predict(self, states: Tensor, timestep: float, condition: Condition) -> Tensor:
        """The guided prediction at one time without a learned sigma, (b, c, h, w), float32, on the teacher's device.

        Each row is guided by its ``guidance`` in the condition, or by the teacher's scale if the condition has none.
        """
        return self.guided(states, condition)(states.to(self.device), timestep)

    @torch.no_grad()
    def guided(self, states: Tensor, condition: Condition) -> GuidedPrediction:
        """Prepare ``predict`` for samples that are predicted at several times.

        Args:
            states: Any states of these samples, (b, c, h, w).
            condition: One row per sample; guidance scales on the host are looked at without a wait for the device.
        """
        condition, scale = self.family.take_guidance(self.transformer, states, condition, self.guidance_scale)
        is_guided = not self.embeds_guidance and bool((scale != 1).any())
        second, (condition, scale) = self.second, self._on_device((condition, scale))
        if not is_guided:
            return GuidedPrediction(self.family, self.transformer, condition, second=second)
        halves = condition, self.null_condition(condition)
        positive, negative = (join_conditions(halves), None) if can_join(halves) else halves
        channels = self.guidance_channels
        return GuidedPrediction(self.family, self.transformer, positive, negative, scale, channels, second)

    def _on_device(self, tensors: Any) -> Any:
        """Tensors on the teacher's device; pinned ones are copied there without a wait."""
        return send_to_device(tensors, self.device, non_blocking=self.device.type != "cpu")

    @torch.no_grad()
    def solve_ode(self, noise: Tensor, condition: Condition, knots: Knots, progress: bool = False) -> Trajectory:
        """Integrate from noise to image, one guided evaluation per step, on the teacher's device.

        Args:
            noise: x_T, (b, c, h, w), on any device; the solver's states are float32 whatever its dtype.
            condition: One row per sample.
            knots: From ``knots``, or a part of it: the ODE can be continued from an inner state.
            progress: Show a bar.

        Raises:
            ValueError: The noise has the wrong shape, or a label is out of range.
        """
        like = noise.ndim == 1 + len(self.sample_shape) and noise.shape[1] == self.sample_shape[0]
        if not like or (self.family.square and noise.shape[-1] != noise.shape[-2]):
            raise ValueError(
                f"expected noise of shape (b, {', '.join(map(str, self.sample_shape))}), or of another height and "
                f"width where {type(self.transformer).__name__} takes it, got {tuple(noise.shape)}"
            )
        self.check_condition(condition)
        return integrate(self.guided(noise, condition), self._on_device(noise.float()), knots, progress)
