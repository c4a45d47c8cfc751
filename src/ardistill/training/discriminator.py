"""The discriminator (the D of R+D): small heads that read the blocks of the frozen teacher.

A latent is noised again and run through the teacher; a head for each block judges that block's image tokens, given the
condition and the timestep. The blocks may learn as well, through adapters of their own. Source: Kim et al. 2025,
arXiv:2504.11295, Sec. 3.3; features at a noise level: Sauer et al. 2024, arXiv:2403.12015.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ardistill.config import AdversarialConfig
from ardistill.core.knots import Knots
from ardistill.devices import precision
from ardistill.families import Condition
from ardistill.teacher import Teacher
from ardistill.training.critic import CriticNetwork
from ardistill.training.noise_levels import NoiseLevels


class Head(nn.Module):
    """Judges the tokens of one block; projection conditioning (Miyato & Koyama 2018, arXiv:1802.05637).

    Args:
        width: Width of the tokens.
        hidden: Width of the head's hidden layer.
        normalised: Whether its layers have spectral normalisation.
    """

    def __init__(self, width: int, hidden: int, normalised: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.first = _layer(nn.Linear(width, hidden), normalised)
        self.mix = _layer(nn.Conv1d(hidden, hidden, 9, padding=4), normalised)
        self.last = _layer(nn.Linear(hidden, 1), normalised)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (b, t, width) and an embedded condition (b, hidden) to logits (b, t)."""
        hidden = nn.functional.leaky_relu(self.first(self.norm(tokens)), 0.2)
        mixed = self.mix(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = nn.functional.leaky_relu(hidden + mixed, 0.2)
        projected = (hidden * condition[:, None]).sum(-1) / hidden.shape[-1] ** 0.5
        return self.last(hidden)[..., 0] + projected


def _layer(layer: nn.Module, normalised: bool) -> Any:
    return spectral_norm(layer) if normalised else layer


@dataclass(frozen=True)
class Seen:
    """Latents as the teacher read them; each image stands in it once for each of its noise levels."""

    noised: Tensor
    """Noised latents, (b, c, h, w)."""
    times: Tensor
    """Timesteps, (b,)."""
    condition: Condition
    """One row each."""
    features: list[Tensor]
    """Image tokens of each block, (b, t, width)."""


class Discriminator(CriticNetwork):
    """The heads, their condition embedding and the blocks' adapters, on the teacher's device.

    The teacher that the heads read is not a submodule: its weights are neither trained nor saved.

    Args:
        teacher: Frozen teacher.
        config: Which blocks are read, at what noise levels, whether they learn, and what the heads are.
        seed: Seed of the initial weights.
        mixed_precision: What the teacher computes in, ``auto``, ``no`` or ``bf16``; the heads compute in float32.
        knots: The student's, whose noise levels are taken with ``levels`` ``knots``.

    Raises:
        ValueError: The student's knots are missing, or none of their noise levels is in the range.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: AdversarialConfig,
        seed: int = 0,
        mixed_precision: str = "auto",
        knots: Knots | None = None,
    ) -> None:
        super().__init__(teacher, config.lora_rank, mixed_precision)
        self.config, family, transformer = config, teacher.family, self.transformer
        blocks = [block for name in family.block_lists for block in getattr(transformer, name)]
        self._blocks = blocks[:: config.every]
        self.levels = NoiseLevels(teacher.knots(100), config.noise_levels, config.levels, knots)
        example = family.example_condition(transformer, 1, 5)
        self._text = "encoder_hidden_states" if teacher.takes_text else ""
        normalised = config.loss == "hinge"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self._text:
                embedding: nn.Module = nn.Linear(example[self._text].shape[-1], config.hidden)
                self.condition = _layer(embedding, normalised)
            else:
                self.condition = nn.Embedding(teacher.num_classes + 1, config.hidden)
                nn.init.zeros_(self.condition.weight)  # otherwise the untrained heads would judge by the class
            self.time = nn.Linear(256, config.hidden)
            width = self._width(example)
            self.heads = nn.ModuleList([Head(width, config.hidden, normalised) for _ in self._blocks])
        self.to(teacher.device, torch.float32)
        self.adapt()

    def _width(self, example: Condition) -> int:
        """Width of the image tokens, found by one call of the teacher."""
        device = self.teacher.device
        latents, times = (
            torch.zeros((1, *self.teacher.sample_shape), device=device),
            torch.full((1,), 500.0, device=device),
        )
        with torch.no_grad():
            return self._read(latents, times, send_to_device(example, device))[0].shape[-1]

    def _read(self, latents: Tensor, times: Tensor, condition: Condition) -> list[Tensor]:
        """Image tokens that each block returns, (b, t, width), in float32 whatever the teacher's dtype."""
        family, transformer = self.teacher.family, self.transformer
        found: list[Tensor] = []
        tokens, start = family.place_image(transformer, family.inputs(transformer, latents, times, condition))

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(_image_tokens(output, tokens, start, family.text).float())

        handles = [block.register_forward_hook(keep) for block in self._blocks]
        try:
            with precision(self.mixed_precision, transformer):
                family.call(transformer, latents, times, condition)
        finally:
            for handle in handles:
                handle.remove()
        return found

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Context in which gradients flow through the discriminator and none to its weights."""
        self.requires_grad_(False)
        try:
            yield
        finally:
            self.requires_grad_(True)

    def draw_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of a number of images, (count * num_levels,), as `NoiseLevels` draws them."""
        return self.levels.draw(count * self.config.num_levels, generator)

    def look(self, latents: Tensor, condition: Condition, levels: Tensor, generator: torch.Generator) -> Seen:
        """Noise latents and read the teacher's blocks. Gradients flow to the latents and, if they learn, the blocks.

        Args:
            latents: Latents of images, (b, c, h, w).
            condition: One row per latent.
            levels: What ``draw_levels`` gave for as many images.
            generator: Source of the noise, on the CPU.
        """
        copies = len(levels) // len(latents)
        if copies > 1:
            latents = latents.repeat_interleave(copies, dim=0)
            condition = {name: x.repeat_interleave(copies, dim=0) for name, x in condition.items()}
        noised, times = self.levels.noised(latents, levels, generator)
        return self._seen(noised, times, condition)

    def _seen(self, noised: Tensor, times: Tensor, condition: Condition) -> Seen:
        given, _ = self.teacher.family.take_guidance(self.teacher.transformer, noised, condition, 1.0)
        return Seen(noised, times, condition, self._read(noised, times, given))

    def near(self, seen: Seen, generator: torch.Generator) -> Seen:
        """The same with a little noise added: to the latents if the blocks learn, else to the features alone."""
        scale, device = self.config.r1_noise, seen.noised.device

        def moved(x: Tensor) -> Tensor:
            return x + scale * torch.randn(x.shape, generator=generator, dtype=torch.float32, device="cpu").to(device)

        if not self.adapters:
            return replace(seen, features=[moved(x) for x in seen.features])
        return self._seen(moved(seen.noised), seen.times, seen.condition)

    def judge(self, seen: Seen) -> Tensor:
        """Logits of what was read, (b, heads * t); above 0 means real, or more real than what it is judged against."""
        known = self.condition(self._pooled(seen.condition) if self._text else seen.condition["class_labels"])
        known = known + self.time(get_timestep_embedding(seen.times, 256))
        logits = [head(tokens, known) for head, tokens in zip(self.heads, seen.features, strict=True)]
        return torch.cat(logits, dim=1)

    def _pooled(self, condition: Condition) -> Tensor:
        """Mean of the text embedding over its tokens, without padding, (b, d)."""
        text = condition[self._text].float()
        mask = next(
            (x for name, x in condition.items() if name in ("encoder_attention_mask", f"{self._text}_mask")), None
        )
        if mask is None:
            return text.mean(1)
        mask = mask.to(text.device)  # a family may keep it on the host
        return (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _image_tokens(output: Any, count: int | None, start: Tensor | None, text: str) -> Tensor:
    """The image tokens in a block's output.

    Args:
        output: One tensor of image tokens, or of text and image tokens, or a tuple of one tensor for each.
        count: Number of image tokens; None if the output holds nothing else.
        start: Index of each row's first image token, (b,), if it differs between rows.
        text: ``first`` if text tokens precede the image tokens.

    Raises:
        ValueError: Text and image tokens are equally many, so that they cannot be told apart.
    """
    parts = [x for x in (output if isinstance(output, tuple) else (output,)) if x is not None]
    if count is None:
        return parts[0]
    if len(parts) > 1:
        fitting = [x for x in parts if x.shape[1] == count]
        if len(fitting) != 1:
            lengths = [x.shape[1] for x in parts]
            raise ValueError(
                f"cannot tell the image's {count} tokens among block outputs of {lengths}; use another size"
            )
        return fitting[0]
    if parts[0].shape[1] == count:
        return parts[0]
    if start is not None:
        index = start[:, None] + torch.arange(count, device=start.device)
        return parts[0].gather(1, index[..., None].expand(-1, -1, parts[0].shape[-1]))
    return parts[0][:, -count:] if text == "first" else parts[0][:, :count]
