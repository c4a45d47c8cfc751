"""A frozen diffusion transformer with its scheduler and guidance, and the ODE that it defines."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ardistill.families import Condition, Family, family_of
from ardistill.schedule import Knots, knots_from_scheduler

ZOO = {"zoo/fashion": Path(__file__).parent / "zoo" / "fashion" / "teacher"}


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

    Raises:
        ValueError: Unknown transformer class, guidance below 1, or a number of channels the model does not have.
    """

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        guidance_scale: float = 1.0,
        guidance_channels: int | None = None,
        companions: dict[str, Any] | None = None,
        name: str = "",
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

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Teacher:
        """Load from ``zoo/fashion``, a diffusers folder or a Hub id; ``options`` go to the constructor.

        Raises:
            ValueError: No transformer and scheduler of known classes are found there.
        """
        source = str(ZOO.get(str(name), name))
        if ZOO.get(str(name)) is None and Path(source).is_absolute() and not Path(source).is_dir():
            raise ValueError(f"expected a diffusers folder at {source}, found none")
        try:
            config = diffusers.DiTTransformer2DModel.load_config(source, subfolder="transformer")
            scheduler_config = diffusers.DDIMScheduler.load_config(source, subfolder="scheduler")
        except OSError as error:
            raise ValueError(
                f"{name}: expected subfolders transformer and scheduler of a diffusers pipeline"
            ) from error
        class_name = config["_class_name"]
        if class_name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
            class_name = "DiTTransformer2DModel"  # as facebook/DiT-XL-2-256 was published
        family_of(class_name)
        scheduler_class = getattr(diffusers, scheduler_config["_class_name"], None)
        if scheduler_class is None:
            raise ValueError(f"{name}: unknown scheduler {scheduler_config['_class_name']!r}; diffusers has none such")
        transformer = getattr(diffusers, class_name).from_pretrained(source, subfolder="transformer")
        scheduler = scheduler_class.from_config(scheduler_config)
        return cls(transformer, scheduler, companions=load_companions(source), name=str(name), **options)

    @property
    def pipeline_class(self) -> str:
        """Name of diffusers' pipeline class for this teacher."""
        return self.family.pipeline

    @property
    def absent(self) -> list[str]:
        """Components of its pipeline class that it does not have."""
        needed = inspect.signature(getattr(diffusers, self.pipeline_class).__init__).parameters.values()
        names = [x.name for x in needed if x.default is x.empty]
        return [x for x in names if x not in ("self", "transformer", "scheduler") and x not in self.companions]

    @property
    def num_classes(self) -> int:
        return self.transformer.config.num_embeds_ada_norm

    @property
    def draws_images(self) -> bool:
        """Whether what it draws can be looked at: through its VAE, or because it draws pixels."""
        return self.companions.get("vae") is not None or self.transformer.config.in_channels in (1, 3)

    def to(self, device: torch.device | str) -> Teacher:
        """Move the transformer and the VAE."""
        self.transformer.to(device)
        if self.companions.get("vae") is not None:
            self.companions["vae"].to(device)
        return self

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one state."""
        config = self.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Images in [-1, 1], on the CPU: through the VAE, or clamped where the teacher draws pixels.

        Args:
            latents: (b, c, h, w).
            batch_size: Latents that the VAE takes at once.

        Raises:
            ValueError: There is no VAE, and the latents are no pixels.
        """
        if not self.draws_images:
            channels = self.transformer.config.in_channels
            name = self.name or "the teacher"
            raise ValueError(f"{name} draws latents of {channels} channels, and there is no VAE beside it")
        vae = self.companions.get("vae")
        if vae is None:
            return latents.clamp(-1, 1).cpu()
        shift = vae.config.get("shift_factor") or 0.0
        scaled = (latents / vae.config.scaling_factor + shift).to(vae.dtype)
        return torch.cat(
            [vae.decode(x.to(vae.device)).sample.float().clamp(-1, 1).cpu() for x in scaled.split(batch_size)]
        )

    def fingerprint(self) -> str:
        """SHA-256 over the weights, names and shapes included."""
        return weight_fingerprint(self.transformer)

    def knots(self, num_steps: int) -> Knots:
        """The solver's trailing grid of ``num_steps`` steps."""
        return knots_from_scheduler(self.scheduler, num_steps)

    def check_condition(self, condition: Condition) -> None:
        """Refuse labels that the teacher does not have."""
        labels, count = condition["class_labels"], self.num_classes
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"expected labels in 0..{count - 1}, got {int(labels.min())}..{int(labels.max())}")

    def noise(self, seed: int, shard: int, count: int) -> Tensor:
        """Initial noise of a shard, (count, c, h, w): a pure function of (seed, shard), drawn on the CPU."""
        generator = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(f"{seed}/{shard}".encode()).digest()[:7])
        )
        return torch.randn(count, *self.sample_shape, generator=generator)

    def null_condition(self, condition: Condition) -> Condition:
        """Of the unguided branch: the label after the last one."""
        return {"class_labels": torch.full_like(condition["class_labels"], self.num_classes)}

    @torch.no_grad()
    def predict(self, states: Tensor, timestep: float, condition: Condition) -> Tensor:
        """Guided prediction at one time, (b, c, h, w); a learned sigma is cut off."""
        channels = self.transformer.config.in_channels
        if self.guidance_scale == 1:
            times = torch.full((len(states),), timestep, device=states.device)
            return self.family.call(self.transformer, states, times, condition)[:, :channels]
        null = self.null_condition(condition)
        both = {name: torch.cat([condition[name], null[name]]) for name in condition}
        times = torch.full((2 * len(states),), timestep, device=states.device)
        predictions = self.family.call(self.transformer, torch.cat([states, states]), times, both)[:, :channels]
        conditional, unconditional = predictions.chunk(2)
        guided = slice(0, self.guidance_channels)
        output = conditional.clone()
        output[:, guided] = torch.lerp(unconditional[:, guided], conditional[:, guided], self.guidance_scale)
        return output

    @torch.no_grad()
    def solve_ode(self, noise: Tensor, condition: Condition, knots: Knots, progress: bool = False) -> Trajectory:
        """Integrate from noise to image with one guided evaluation per step.

        Args:
            noise: x_T, (b, c, h, w).
            condition: One row per sample.
            knots: From ``knots``, or part of it: the ODE can be continued from an inner state.
            progress: Show a bar.

        Raises:
            ValueError: Wrong shape of the noise, or labels that the teacher does not have.
        """
        if tuple(noise.shape[1:]) != self.sample_shape:
            raise ValueError(
                f"expected noise of shape (b, {', '.join(map(str, self.sample_shape))}), got {tuple(noise.shape)}"
            )
        self.check_condition(condition)
        to_state, to_denoised = knots.coefficients("state"), knots.coefficients("denoised")
        state, states, denoised = noise, [noise], []
        for s in tqdm(range(knots.num_steps), disable=not progress):
            prediction = self.predict(state, knots.timesteps[s], condition)
            denoised.append(float(to_denoised[s, 0]) * state + float(to_denoised[s, 1]) * prediction)
            state = float(to_state[s, 0]) * state + float(to_state[s, 1]) * prediction
            states.append(state)
        return Trajectory(torch.stack(states, 1), torch.stack(denoised, 1))


def load_companions(source: str) -> dict[str, Any]:
    """What ``model_index.json`` names besides the transformer and the scheduler; {} where there is none."""
    try:
        index = diffusers.DiffusionPipeline.load_config(source)
    except OSError:
        return {}
    companions: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_") or name in ("transformer", "scheduler"):
            continue
        if not isinstance(value, (list, tuple)):
            companions[name] = value
        elif value[0] is not None:
            part = getattr(importlib.import_module(value[0]), value[1]).from_pretrained(source, subfolder=name)
            companions[name] = part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part
    return companions


def weight_fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
