"""A frozen diffusion transformer with its scheduler and guidance, and the ODE that it defines."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ardistill.core.knots import Knots
from ardistill.devices import Device, device_of, resolve_device
from ardistill.families import SEQUENCE_LENGTH, Condition, Family, family_of
from ardistill.families.grids import uniform_grid
from ardistill.files.weights import weight_fingerprint
from ardistill.progress import bar as progress_bar
from ardistill.teacher.loading import ZOO, Companions, find, load_scheduler, load_transformer  # noqa: F401
from ardistill.teacher.original_dit import load_original_dit
from ardistill.teacher.schedule import knots_from_scheduler

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trajectory:
    """Solution of the teacher's probability-flow ODE, noisiest first."""

    states: Tensor
    """x_t at every knot, (b, n + 1, c, h, w)."""
    denoised: Tensor
    """x̂0 that each solver step computed, (b, n, c, h, w); entry i belongs to the step that arrives at state i + 1."""


class Teacher:
    """A frozen transformer of a known family, its scheduler and its guidance.

    Args:
        transformer: Frozen and put in evaluation mode here, so that no label is dropped.
        scheduler: The teacher's own diffusers scheduler; only its noise schedule is used.
        guidance_scale: Classifier-free guidance (Ho & Salimans 2022); 1 means none.
        guidance_channels: Guide only so many first channels (the original DiT guided 3 of 4); None: all.
        companions: The pipeline's other components and settings, such as ``vae`` and ``id2label``; a teacher without a
            ``vae`` draws pixels.
        name: What it was loaded by.
        latent_shape: (c, h, w) or (c, f, h, w) of a sample; what the transformer's config says if not given.
        negative_prompt: Of the unguided branch, for a teacher that is conditioned on text.

    Raises:
        ValueError: Unknown transformer class, guidance below 1, or a number of channels the model does not have.
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
        channels = transformer.config.in_channels
        if guidance_channels is not None and not 1 <= guidance_channels <= channels:
            raise ValueError(f"expected 1 to {channels} guided channels, got {guidance_channels}")
        self.family: Family = family_of(transformer)
        self.transformer = transformer.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.guidance_scale = guidance_scale
        self.guidance_channels = guidance_channels
        self.companions = companions or {}
        self.name = name
        self.sample_shape = latent_shape or self.family.latent_shape(transformer)
        self.negative_prompt = negative_prompt
        self._vae_device: Device = None
        self._text_held = False
        self._text_dtype = torch.float32
        self._null: Condition | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 1,
        device: Device = None,
        **options: Any,
    ) -> Teacher:
        """Load from ``zoo/fashion`` or ``zoo/emoji``, a diffusers folder, a Hub id or an original DiT's ``.pt`` file.

        Args:
            name: Where the pipeline is, or an original DiT's ``.pt`` file; a Hub id is downloaded once, whole. Behind
                it may stand ``@REVISION`` of a Hub id, and ``:VARIANT`` where weights are there in several variants, as
                in ``org/model@main:fp16``. The teacher's ``name`` becomes what finds it from any folder.
            height: Of the images, in pixels; the model's own if not given.
            width: Same.
            num_frames: Of a video.
            device: Where transformer and VAE are put; the best device there is if not given.
            options: Of the constructor.

        Raises:
            ValueError: No transformer and scheduler of known classes are found there, the weights are quantised or
                of several variants, the scheduler has an option that is not honoured, or there is no such device.
        """
        where = resolve_device(device)
        source = find(name)
        if source.folder.suffix == ".pt" and source.folder.is_file():
            transformer, scheduler = load_original_dit(source.folder)
            return cls(transformer, scheduler, name=source.name, **options).to(where)
        if not source.folder.is_dir():
            raise ValueError(
                f"expected a diffusers folder or an original DiT's .pt file, got {source.folder}; load it with "
                "from_single_file of its diffusers pipeline and name the folder that save_pretrained writes"
            )
        scheduler = load_scheduler(source)
        companions = Companions(source.folder, source.variant)
        companions.check()
        if "transformer_2" in companions:
            raise ValueError(f"{name} has a second transformer for a part of the path (as Wan 2.2): not supported")
        transformer = load_transformer(source)
        teacher = cls(transformer, scheduler, companions=companions, name=source.name, **options)
        if height is not None or width is not None or num_frames != 1:
            teacher.sample_shape = teacher.latent_shape(height, width, num_frames)
        return teacher.to(where)

    def latent_shape(self, height: int | None, width: int | None, num_frames: int = 1) -> tuple[int, ...]:
        """Shape of the latents of an image or video of so many pixels and frames, (c, h, w) or (c, f, h, w).

        Raises:
            ValueError: Height or width is missing, not a multiple of what the VAE and the packing need, the class takes
                squares alone, or so many frames are not to be had.
        """
        if height is None or width is None:
            raise ValueError("expected both height and width, or neither")
        factor = self.pixels_per_latent
        unit = factor * self.family.packing
        if height < 1 or width < 1 or height % unit or width % unit:
            raise ValueError(f"expected a size in multiples of {unit} pixels, got {height}x{width}")
        if self.family.square and height != width:
            raise ValueError(f"{type(self.transformer).__name__} draws squares alone, got {height}x{width}")
        vae = self.vae
        every = (vae is not None and vae.config.get("scale_factor_temporal")) or 1
        frames, rest = divmod(num_frames - 1, every)
        shape = self.family.latent_shape(self.transformer, height // factor, width // factor, frames + 1)
        if num_frames < 1 or rest or (num_frames > 1 and len(shape) == 3):
            known = f"1 and a multiple of {every}" if len(shape) == 4 else "1: it draws images"
            raise ValueError(f"expected a number of frames of {known}, got {num_frames}")
        return shape

    @property
    def draws_images(self) -> bool:
        """Whether what it draws can be looked at: through its VAE, or because it draws pixels."""
        return self.vae is not None or self.transformer.config.in_channels in (1, 3)

    @property
    def image_channels(self) -> int:
        """Channels of its images: 1 where it draws in grey, else 3."""
        vae = self.vae
        channels = self.sample_shape[0] if vae is None else vae.config.get("out_channels")
        return 1 if channels == 1 else 3

    @property
    def pixels_per_latent(self) -> int:
        """Along height and width; 1 where it draws pixels."""
        return getattr(self.companions, "pixels_per_latent", 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1], (b, c, h, w), on the CPU: the inverse of ``decode``, the mean of the VAE's
        distribution.
        """
        vae = self.vae
        if vae is None:
            return images.cpu()
        x = images.to(vae.device, vae.dtype)
        is_video = vae.config.get("latents_mean") is not None and vae.config.get("scaling_factor") is None
        encoded = vae.encode(x.unsqueeze(2) if is_video else x)
        mean = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents  # AutoencoderTiny's
        latents = _scale(vae, mean.float()).cpu()
        return latents[:, :, 0] if latents.ndim > 1 + len(self.sample_shape) else latents

    @property
    def takes_text(self) -> bool:
        """Whether it is conditioned on prompts; else on class labels."""
        return self.family.encode is not None

    @property
    def embeds_guidance(self) -> bool:
        """Whether guidance is an input of the network (Flux-dev): then there is no unguided branch."""
        return self.family.embeds_guidance(self.transformer)

    def to(self, device: torch.device | str) -> Teacher:
        """Move the transformer now, and the VAE when it is next used."""
        self.transformer.to(device)
        self.move_vae(device)
        return self

    def move_vae(self, device: torch.device | str) -> None:
        """Let the VAE work there from its next use on."""
        self._vae_device = device

    @property
    def device(self) -> torch.device:
        """Where the transformer is, and where its work is done."""
        return device_of(self.transformer)

    @property
    def vae(self) -> Any:
        """The VAE, where the teacher was last moved to; None for a teacher that draws pixels."""
        vae = self.companions.get("vae")
        if vae is not None and self._vae_device is not None:
            vae.to(self._vae_device)
        return vae

    @property
    def pipeline_class(self) -> str:
        """Name of diffusers' pipeline class for this teacher."""
        named = getattr(self.companions, "pipeline_class", "")
        return named if hasattr(diffusers, named) else self.family.pipeline

    @property
    def absent(self) -> list[str]:
        """Components of its pipeline class that it does not have."""
        needed = inspect.signature(getattr(diffusers, self.pipeline_class).__init__).parameters.values()
        names = [x.name for x in needed if x.default is x.empty]
        return [x for x in names if x not in ("self", "transformer", "scheduler") and x not in self.companions]

    @property
    def num_classes(self) -> int:
        config = self.transformer.config
        return config.get("num_embeds_ada_norm") or config.num_classes

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Images in [-1, 1], (b, c, h, w), on the CPU: through the VAE, or clamped where the teacher draws pixels.

        Of a video the first frame.

        Args:
            latents: (b, c, h, w) or (b, c, f, h, w).
            batch_size: Latents that the VAE takes at once.

        Raises:
            ValueError: There is no VAE, and the latents are no pixels.
        """
        if not self.draws_images:
            channels = self.transformer.config.in_channels
            name = self.name or "the teacher"
            raise ValueError(f"{name} draws latents of {channels} channels, and there is no VAE beside it")
        vae = self.vae
        if vae is None:
            return latents.float().clamp(-1, 1).cpu()
        scaled = _unscale(vae, latents.to(vae.device, torch.float32)).to(vae.dtype)
        images = [vae.decode(x).sample.float().clamp(-1, 1).cpu() for x in scaled.split(batch_size)]
        return torch.cat([x[:, :, 0] if x.ndim == 5 else x for x in images])

    def fingerprint(self) -> str:
        """SHA-256 over the weights, names and shapes included."""
        return weight_fingerprint(self.transformer.state_dict())

    def knots(self, num_steps: int) -> Knots:
        """The solver's grid of ``num_steps`` steps: trailing, or as the teacher's pipeline spaces flow-matching sigmas.

        Raises:
            ValueError: The scheduler's options are not honoured or do not fit, or it is of an unknown kind.
        """
        config, mu = self.scheduler.config, None
        if config.get("use_dynamic_shifting"):
            mu = self.family.mu(config, self.sample_shape, num_steps)
        grid = uniform_grid if getattr(self.companions, "has_uniform_sigmas", False) else self.family.grid
        return knots_from_scheduler(self.scheduler, num_steps, mu, self.family.shift_times, grid)

    @torch.no_grad()
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
        """Condition of prompts, one row each, by the text encoders of its pipeline, on the CPU.

        Args:
            prompts: One or more, not encoded twice where they repeat.
            batch_size: Prompts encoded at once.
            negative: Whether they are of the unguided branch.
            device: Where the text encoders run, and are taken away from afterwards; where the transformer is if not
                given.
            longest: Where the pipeline pads to the longest prompt, the longest of all that these belong to, from
                ``longest_prompt``; the longest of these if not given.
            dtype: What embeddings are given in; None: what the text encoders were saved in.
            first: Number of the first prompt, where these are some of many distinct ones: each then has its fixed place
                in a full batch, so that its embedding is the same to the last bit, whichever are encoded with it.

        Raises:
            ValueError: The teacher takes no text, or its folder has no text encoder, or there is no prompt.
        """
        if self.family.encode is None:
            raise ValueError(f"{self.name or 'the teacher'} is conditioned on class labels, not on prompts")
        if not prompts:
            raise ValueError("expected one prompt or more, got none")
        distinct = list(dict.fromkeys(prompts))
        longest = longest or self.longest_prompt(distinct)
        beside = [] if longest is None else [longest]
        before = 0 if first is None else first % batch_size
        filled = [distinct[0]] * before + distinct
        if first is not None:
            filled += [distinct[-1]] * (-len(filled) % batch_size)
        parts = [filled[i : i + batch_size] for i in range(0, len(filled), batch_size)]
        encode = (negative and self.family.encode_negative) or self.family.encode
        with self.text_encoders(device):
            encoded = [(len(part), encode(self._text_pipeline, part + beside)) for part in parts]
            kept = [
                {name: x[:count].to("cpu", self._stored_dtype(x, dtype)) for name, x in found.items()}
                for count, found in encoded
            ]
        table = join_conditions(kept)
        number = {prompt: before + i for i, prompt in enumerate(distinct)}
        rows = torch.tensor([number[prompt] for prompt in prompts], device="cpu")
        return {name: value[rows] for name, value in table.items()}

    def _stored_dtype(self, x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
        return (dtype or self._text_dtype) if x.is_floating_point() else x.dtype

    @contextlib.contextmanager
    def text_encoders(self, device: Device = None) -> Iterator[None]:
        """Keep the text encoders on a device within; they are taken away from it afterwards.

        On a CPU, which is slow or wrong in half precision, they run in float32.
        """
        if self._text_held:
            yield
            return
        modules = [x for x in self._text_pipeline.components.values() if isinstance(x, nn.Module)]
        where = resolve_device(device, self.device)
        for module in modules:
            module.to(where)
            if where.type == "cpu":
                module.float()
        self._text_held = True
        try:
            yield
        finally:
            self._text_held = False
            for module in modules:
                module.to("cpu")

    def longest_prompt(self, prompts: Sequence[str]) -> str | None:
        """The prompt of the most tokens, where the pipeline pads all to it; None where it does not."""
        if not self.family.encodes_to_longest:
            return None
        tokenizer = self._text_pipeline.tokenizer
        return max(prompts, key=lambda prompt: len(tokenizer(prompt).input_ids))

    def say_cut_prompts(self, prompts: Sequence[str]) -> None:
        """Log how many prompts are longer than each of the text encoders reads; what is beyond has no effect."""
        for name, tokenizer in self._text_pipeline.components.items():
            limit = text_limit(self._text_pipeline, tokenizer) if name.startswith("tokenizer") else None
            if limit is None:
                continue
            with _quiet():
                lengths = [len(x) for x in tokenizer(list(prompts), truncation=False).input_ids]
            if cut := sum(length > limit for length in lengths):
                _LOG.warning(
                    "%d of %d prompts are longer than the %d tokens of %s: the rest of each has no effect there",
                    cut, len(lengths), limit, name,
                )  # fmt: skip

    @functools.cached_property
    def _text_pipeline(self) -> Any:
        """Of diffusers' own class, whatever module the folder has of its own, without transformer and VAE."""
        if getattr(self.companions, "source", None) is None:
            raise ValueError("expected a teacher loaded from a pipeline folder, which has the text encoders")
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("text encoders need transformers: pip install 'ardistill[text]'")
        base = getattr(diffusers, self.pipeline_class)
        given = {"transformer": None, "vae": None, "scheduler": self.scheduler}
        for name, parameter in list(inspect.signature(base.__init__).parameters.items())[1:]:
            if name not in given and (name in self.companions or parameter.default is parameter.empty):
                given[name] = self.companions.get(name)
        pipeline = base(**given)
        modules = [x for x in pipeline.components.values() if isinstance(x, nn.Module)]
        floating = {x.dtype for module in modules for x in module.parameters() if x.is_floating_point()}
        if floating and torch.float32 not in {next(module.parameters()).dtype for module in modules}:
            self._text_dtype = torch.bfloat16 if torch.bfloat16 in floating else torch.float16
        pipeline.transformer = SimpleNamespace(config=self.transformer.config)  # asked for widths
        if "max_sequence_length" in self.companions:
            pipeline.register_to_config(**{SEQUENCE_LENGTH: self.companions["max_sequence_length"]})
        return pipeline

    def check_condition(self, condition: Condition) -> None:
        """Refuse labels that the teacher does not have."""
        if self.takes_text:
            return
        labels, count = condition["class_labels"], self.num_classes
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"expected labels in 0..{count - 1}, got {int(labels.min())}..{int(labels.max())}")

    def noise(self, seed: int, shard: int, count: int, sample_shape: tuple[int, ...] | None = None) -> Tensor:
        """Initial noise of a shard, (count, c, h, w): a pure function of (seed, shard), drawn on the CPU."""
        return torch.randn(
            count,
            *(sample_shape or self.sample_shape),
            generator=seeded_generator(f"{seed}/{shard}"),
            dtype=torch.float32,
            device="cpu",
        )

    def encode_negative(self, device: torch.device | str | None = None) -> Condition:
        """Condition of the negative prompt, one row; encoded once."""
        if self._null is None:
            self._null = self.encode([self.negative_prompt], negative=True, device=device)
        return self._null

    def null_condition(self, condition: Condition) -> Condition:
        """Of the unguided branch: the negative prompt, or the label after the last one."""
        if self.takes_text:
            like = next(iter(condition.values()))
            return {
                name: value.to(like.device).expand(len(like), *value.shape[1:])
                for name, value in self.encode_negative().items()
            }
        return {"class_labels": torch.full_like(condition["class_labels"], self.num_classes)}

    @torch.no_grad()
    def predict(self, states: Tensor, timestep: float, condition: Condition) -> Tensor:
        """Prediction at one time, (b, c, h, w), in float32, on the teacher's device.

        Each row is guided by its ``guidance`` in the condition, or by the teacher's scale where there is none. A
        learned sigma is cut off. Guidance is applied in float32, whatever the dtype of the weights.
        """
        channels = self.transformer.config.in_channels
        states, condition = self._brought_here(states, condition)
        condition, guidance = self.family.take_guidance(self.transformer, states, condition, self.guidance_scale)

        def call(latents: Tensor, given: Condition) -> Tensor:
            times = torch.full((len(latents),), timestep, dtype=torch.float32, device=latents.device)
            return self.family.call(self.transformer, latents, times, given)[:, :channels].float()

        if self.embeds_guidance or bool((guidance == 1).all()):
            return call(states, condition)
        null = self.null_condition(condition)
        if can_join([condition, null]):
            both = join_conditions([condition, null])
            conditional, unconditional = call(torch.cat([states, states]), both).chunk(2)
        else:  # prompts of unequal length without a mask
            conditional, unconditional = call(states, condition), call(states, null)
        guided = slice(0, self.guidance_channels)
        output = conditional.clone()
        weight = guidance.to(output.dtype).view(-1, *(1 for _ in output.shape[1:]))
        output[:, guided] = torch.lerp(unconditional[:, guided], conditional[:, guided], weight)
        return self.family.rescale_guided(output, conditional) if self.family.rescale_guided else output

    def _brought_here(self, states: Tensor, condition: Condition) -> tuple[Tensor, Condition]:
        """States and condition on the teacher's device."""
        device = self.device
        return states.to(device), {name: value.to(device) for name, value in condition.items()}

    @torch.no_grad()
    def solve_ode(self, noise: Tensor, condition: Condition, knots: Knots, progress: bool = False) -> Trajectory:
        """Integrate from noise to image with one guided evaluation per step, on the teacher's device.

        Args:
            noise: x_T, (b, c, h, w), on any device; the solver's states are float32, whatever its dtype.
            condition: One row per sample.
            knots: From ``knots``, or part of it: the ODE can be continued from an inner state.
            progress: Show a bar.

        Raises:
            ValueError: Wrong shape of the noise, or labels that the teacher does not have.
        """
        like = noise.ndim == 1 + len(self.sample_shape) and noise.shape[1] == self.sample_shape[0]
        if not like or (self.family.square and noise.shape[-1] != noise.shape[-2]):
            raise ValueError(
                f"expected noise of shape (b, {', '.join(map(str, self.sample_shape))}), or of another height and "
                f"width where {type(self.transformer).__name__} takes it, got {tuple(noise.shape)}"
            )
        self.check_condition(condition)
        to_state, to_denoised = knots.coefficients("state"), knots.coefficients("denoised")
        state, condition = self._brought_here(noise.float(), condition)
        states, denoised = [state], []
        for s in progress_bar(range(knots.num_steps), disable=not progress):
            prediction = self.predict(state, knots.timesteps[s], condition)
            denoised.append(to_denoised[s][0] * state + to_denoised[s][1] * prediction)
            state = to_state[s][0] * state + to_state[s][1] * prediction
            states.append(state)
        return Trajectory(torch.stack(states, 1), torch.stack(denoised, 1))


def seeded_generator(key: str) -> torch.Generator:
    """On the CPU, seeded by the SHA-256 of ``key``: neighbouring keys are not alike."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]))


def text_limit(pipeline: Any, tokenizer: Any) -> int | None:
    """Tokens that a pipeline reads of a prompt through one of its tokenizers; None where that is not known."""
    own = getattr(tokenizer, "model_max_length", None)
    default = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    asked = pipeline.config.get(SEQUENCE_LENGTH, default.default) if default is not None else None
    if asked and not type(tokenizer).__name__.startswith(("CLIP", "Bert")):  # which have a length of their own
        return int(asked)
    return int(own) if own and own < 100_000 else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tokenizers' own warnings, a line for each prompt that is too long."""
    log = logging.getLogger("transformers.tokenization_utils_base")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _unscale(vae: Any, latents: Tensor) -> Tensor:
    """What the VAE decodes, from what the ODE runs on; each kind of VAE has its own scale."""
    config = vae.config
    if config.get("latents_mean") is not None and config.get("scaling_factor") is None:  # Wan, Qwen-Image: video VAEs
        if latents.ndim == 4:
            latents = latents.unsqueeze(2)
        mean, std = (
            torch.tensor(x, dtype=torch.float32, device=latents.device).view(1, -1, 1, 1, 1)
            for x in (config.latents_mean, config.latents_std)
        )
        return latents * std + mean
    if hasattr(vae, "bn"):  # Flux2: normalised 2x2 patches
        mean, variance = (x.view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
        patches = latents * (variance + config.batch_norm_eps).sqrt() + mean
        return torch.nn.functional.pixel_shuffle(patches, 2)
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)


def _scale(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of ``_unscale``."""
    config = vae.config
    if config.get("latents_mean") is not None and config.get("scaling_factor") is None:
        mean, std = (
            torch.tensor(x, dtype=torch.float32, device=latents.device).view(1, -1, 1, 1, 1)
            for x in (config.latents_mean, config.latents_std)
        )
        return (latents - mean) / std
    if hasattr(vae, "bn"):
        mean, variance = (x.view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
        patches = torch.nn.functional.pixel_unshuffle(latents, 2)
        return (patches - mean) / (variance + config.batch_norm_eps).sqrt()
    return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def can_join(parts: Sequence[Condition]) -> bool:
    """Whether their texts are of one length, or a mask says what counts."""
    lengths = {tuple(value.shape[1:2] for value in part.values()) for part in parts}
    return len(lengths) == 1 or any("mask" in key for key in parts[0])


def join_conditions(parts: Sequence[Condition]) -> Condition:
    """Rows of several conditions, text padded to the longest where a mask says what counts.

    Raises:
        ValueError: Lengths differ and there is no mask.
    """
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].ndim > 1 and len({value.shape[1] for value in values}) > 1:
            if not can_join(parts):
                lengths = [value.shape[1] for value in values]
                raise ValueError(f"prompts were encoded to different lengths {lengths} without a mask; pad them alike")
            longest = max(value.shape[1] for value in values)
            values = [pad_tokens(value, longest) for value in values]
        joined[name] = torch.cat([value.to(values[0].device) for value in values])
    return joined


def pad_tokens(value: Tensor, tokens: int) -> Tensor:
    """Embeddings or masks (n, t, ...) with zeros behind them, up to ``tokens``."""
    padding = value.new_zeros(len(value), tokens - value.shape[1], *value.shape[2:])
    return torch.cat([value, padding], dim=1)
