"""The discriminator (the D of R+D): small heads that read the blocks of the frozen teacher.

A latent is noised again and run through the teacher; a head for each block judges that block's image tokens, given the
condition and the timestep. Source: Kim et al. 2025, arXiv:2504.11295, Sec. 3.3; features at a noise level: Sauer et al.
2024, arXiv:2403.12015.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ardistill.config import AdversarialConfig
from ardistill.devices import precision
from ardistill.families import Condition
from ardistill.teacher import Teacher


class Head(nn.Module):
    """Judges the tokens of one block; projection conditioning (Miyato & Koyama 2018, arXiv:1802.05637).

    Args:
        width: Width of the tokens.
        hidden: Width of the head's hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.first = spectral_norm(nn.Linear(width, hidden))
        self.mix = spectral_norm(nn.Conv1d(hidden, hidden, 9, padding=4))
        self.last = spectral_norm(nn.Linear(hidden, 1))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (b, t, width) and an embedded condition (b, hidden) to logits (b, t)."""
        hidden = nn.functional.leaky_relu(self.first(self.norm(tokens)), 0.2)
        mixed = self.mix(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = nn.functional.leaky_relu(hidden + mixed, 0.2)
        projected = (hidden * condition[:, None]).sum(-1) / hidden.shape[-1] ** 0.5
        return self.last(hidden)[..., 0] + projected


class Discriminator(nn.Module):
    """The heads and their condition embedding, on the teacher's device.

    The teacher that the heads read is not a submodule: it is neither trained nor saved.

    Args:
        teacher: Frozen teacher.
        config: Which blocks are read, at what noise levels, and how wide the heads are.
        seed: Seed of the initial weights.
        mixed_precision: What the teacher computes in, ``auto``, ``no`` or ``bf16``; the heads compute in float32.
    """

    teacher: Teacher
    _knots: Tensor
    """Alpha, sigma and timestep of each of 100 steps, (3, 100)."""

    def __init__(
        self, teacher: Teacher, config: AdversarialConfig, seed: int = 0, mixed_precision: str = "auto"
    ) -> None:
        super().__init__()
        transformer, family = teacher.transformer, teacher.family
        self.mixed_precision = mixed_precision
        self.__dict__.update(teacher=teacher)  # not through nn.Module, which would register a submodule
        blocks = [block for name in family.block_lists for block in getattr(transformer, name)]
        self._blocks = blocks[:: config.every]
        knots, steps = teacher.knots(100), 100
        table = torch.tensor([knots.alpha[:-1], knots.sigma[:-1], knots.timesteps], dtype=torch.float32, device="cpu")
        self.register_buffer("_knots", table, persistent=False)
        low, high = config.noise_levels
        # Knot i precedes step i: its share of the path is 1 - i / steps.
        self._range = max(0, round((1 - high) * steps)), min(steps - 1, round((1 - low) * steps))
        example = family.example_condition(transformer, 1, 5)
        self._text = "encoder_hidden_states" if teacher.takes_text else ""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self._text:
                self.condition: nn.Module = spectral_norm(nn.Linear(example[self._text].shape[-1], config.hidden))
            else:
                self.condition = nn.Embedding(teacher.num_classes + 1, config.hidden)
                nn.init.zeros_(self.condition.weight)  # otherwise the untrained heads would judge by the class
            self.time = nn.Linear(256, config.hidden)
            width = self._width(example)
            self.heads = nn.ModuleList([Head(width, config.hidden) for _ in self._blocks])
        self.to(teacher.device, torch.float32)

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
        family, transformer = self.teacher.family, self.teacher.transformer
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

    def features(
        self, latents: Tensor, condition: Condition, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Noise latents to random levels and read the teacher's blocks.

        Args:
            latents: Latents of images, (b, c, h, w); gradients flow to them.
            condition: One row per latent.
            generator: Source of the levels and the noise, on the CPU.

        Returns:
            Image tokens of each block, (b, t, width), and the timesteps, (b,).
        """
        low, high = self._range
        levels = torch.randint(low, high + 1, (len(latents),), generator=generator, device="cpu")
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32, device="cpu").to(latents.device)
        shape = (-1, *(1 for _ in latents.shape[1:]))
        alpha, sigma, times = self._knots[:, levels.to(latents.device)]
        noised = alpha.view(shape) * latents + sigma.view(shape) * noise
        teacher = self.teacher
        condition, _ = teacher.family.take_guidance(teacher.transformer, latents, condition, 1.0)
        return self._read(noised, times, condition), times

    def judge(self, features: list[Tensor], times: Tensor, condition: Condition) -> Tensor:
        """Logits of features, (b, heads * t); above 0 means real."""
        known = self.condition(self._pooled(condition) if self._text else condition["class_labels"])
        known = known + self.time(get_timestep_embedding(times, 256))
        logits = [head(tokens, known) for head, tokens in zip(self.heads, features, strict=True)]
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
