"""Is it real? Small heads that read the blocks of the frozen teacher (the D of R+D).

A latent is noised again, run through the teacher, and each of its blocks' image tokens is judged by a head that knows
the condition and the time. Source: Kim et al. 2025, arXiv:2504.11295, Sec. 3.3; features at a noise level: Sauer et al.
2024, arXiv:2403.12015.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.utils.parametrizations import spectral_norm

from ardistill.config import AdversarialConfig
from ardistill.families import Condition
from ardistill.teacher import Teacher
from ardistill.training.real_images import load_real


class Head(nn.Module):
    """Judges the tokens of one block; projection conditioning (Miyato & Koyama 2018, arXiv:1802.05637).

    Args:
        width: Of the tokens.
        hidden: Of the head.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.first = spectral_norm(nn.Linear(width, hidden))
        self.mix = spectral_norm(nn.Conv1d(hidden, hidden, 9, padding=4))
        self.last = spectral_norm(nn.Linear(hidden, 1))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens (b, t, width) and condition (b, hidden) to logits (b, t)."""
        hidden = nn.functional.leaky_relu(self.first(self.norm(tokens)), 0.2)
        mixed = self.mix(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = nn.functional.leaky_relu(hidden + mixed, 0.2)
        projected = (hidden * condition[:, None]).sum(-1) / hidden.shape[-1] ** 0.5
        return self.last(hidden)[..., 0] + projected


class Discriminator(nn.Module):
    """The heads, on the teacher's device; the teacher that they read is no part of it and is not trained.

    Args:
        teacher: Frozen.
        config: Which blocks are read, at what noise, and how wide the heads are.
        seed: Of the initial weights.
    """

    teacher: Teacher

    def __init__(self, teacher: Teacher, config: AdversarialConfig, seed: int = 0) -> None:
        super().__init__()
        transformer, family = teacher.transformer, teacher.family
        self.__dict__.update(teacher=teacher)  # not a submodule: neither trained nor saved
        blocks = [block for name in family.block_lists for block in getattr(transformer, name)]
        self._blocks = blocks[:: config.every]
        self._knots, steps = teacher.knots(100), 100
        low, high = config.noise_levels
        # Knot i stands before step i: its share of the path is 1 - i / steps.
        self._range = max(0, round((1 - high) * steps)), min(steps - 1, round((1 - low) * steps))
        example = family.example_condition(transformer, 1, 5)
        self._text = "encoder_hidden_states" if teacher.takes_text else ""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self._text:
                self.condition: nn.Module = spectral_norm(nn.Linear(example[self._text].shape[-1], config.hidden))
            else:
                self.condition = nn.Embedding(teacher.num_classes + 1, config.hidden)
                nn.init.zeros_(self.condition.weight)  # else each class has a verdict of its own before any is learned
            self.time = nn.Linear(256, config.hidden)
            width = self._width(example)
            self.heads = nn.ModuleList([Head(width, config.hidden) for _ in self._blocks])
        self.to(teacher.device, torch.float32)

    def _width(self, example: Condition) -> int:
        shape = (1, *self.teacher.sample_shape)
        device = self.teacher.device
        condition = {name: value.to(device) for name, value in example.items()}
        with torch.no_grad():
            return self._read(torch.zeros(shape, device=device), torch.full((1,), 500.0, device=device), condition)[
                0
            ].shape[-1]

    def _read(self, latents: Tensor, times: Tensor, condition: Condition) -> list[Tensor]:
        """Image tokens that leave each block, (b, t, width), in float32, whatever the dtype of the weights."""
        family, transformer = self.teacher.family, self.teacher.transformer
        found: list[Tensor] = []
        tokens, start = family.place_image(transformer, family.inputs(transformer, latents, times, condition))

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(_image_tokens(output, tokens, start, family.text).float())

        handles = [block.register_forward_hook(keep) for block in self._blocks]
        try:
            family.call(transformer, latents, times, condition)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def features(
        self, latents: Tensor, condition: Condition, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """What the teacher's blocks make of latents noised to a random level, and the times, (b,).

        Args:
            latents: Images' latents, (b, c, h, w); gradients flow to them.
            condition: One row each.
            generator: On the CPU; of the levels and the noise.
        """
        low, high = self._range
        levels = torch.randint(low, high + 1, (len(latents),), generator=generator, device="cpu")
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32, device="cpu").to(latents.device)
        knots, shape = self._knots, (-1, *(1 for _ in latents.shape[1:]))
        alpha, sigma, times = (
            torch.tensor(x, dtype=torch.float32, device="cpu")[levels].to(latents.device)
            for x in (knots.alpha, knots.sigma, knots.timesteps)
        )
        noised = alpha.view(shape) * latents + sigma.view(shape) * noise
        teacher = self.teacher
        condition, _ = teacher.family.take_guidance(teacher.transformer, latents, condition, 1.0)
        return self._read(noised, times, condition), times

    def judge(self, features: list[Tensor], times: Tensor, condition: Condition) -> Tensor:
        """Logits, (b, heads * t), of features; above 0: real."""
        known = self.condition(self._pooled(condition) if self._text else condition["class_labels"])
        known = known + self.time(get_timestep_embedding(times, 256))
        logits = [head(tokens, known) for head, tokens in zip(self.heads, features, strict=True)]
        return torch.cat(logits, dim=1)

    def _pooled(self, condition: Condition) -> Tensor:
        text = condition[self._text].float()
        mask = next(
            (x for name, x in condition.items() if name in ("encoder_attention_mask", f"{self._text}_mask")), None
        )
        if mask is None:
            return text.mean(1)
        return (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _image_tokens(output: Any, count: int | None, start: Tensor | None, text: str) -> Tensor:
    """The image's part of what a block returns: one tensor, perhaps of text and image, or text and image apart."""
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


def _recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> float:
    """Share of real features, (n, d), that lie among the fakes (Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 2).

    Of a batch it is rough, and too low where n is small: what it does over the training is what it is for.
    """
    radius = torch.cdist(fake, fake).kthvalue(min(neighbours + 1, len(fake)), dim=1).values  # the first is itself
    return float((torch.cdist(real, fake) <= radius).any(1).float().mean())


class Adversary:
    """A discriminator, its optimiser and the real data: what the training loop asks beside the regression.

    Args:
        discriminator: Trained here.
        latents: Of real images, (n, c, h, w).
        condition: Theirs, one row each.
        config: How.
    """

    def __init__(
        self, discriminator: Discriminator, latents: Tensor, condition: Condition, config: AdversarialConfig
    ) -> None:
        self.discriminator, self.config = discriminator, config
        self.latents, self.real_condition = latents, condition
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters, rate = self.discriminator.parameters(), self.config.learning_rate
        return torch.optim.AdamW(parameters, rate, betas=(0.0, 0.99), weight_decay=0.0)

    @classmethod
    def of_real(cls, teacher: Teacher, real: str | Path, config: AdversarialConfig, seed: int = 0) -> Adversary:
        """With new heads, on the real data of a file that ``ardistill encode`` wrote."""
        return cls(Discriminator(teacher, config, seed), *load_real(real, teacher), config)

    def generator_loss(self, fake: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """Hinge loss of the student: how far its images are from being taken for real."""
        self.discriminator.requires_grad_(False)
        features, times = self.discriminator.features(fake, condition, generator)
        loss = -self.discriminator.judge(features, times, condition).mean()
        self.discriminator.requires_grad_(True)
        return loss

    def weight(self, regression: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
        """Of the adversarial loss.

        Adaptive: the ratio of both losses' gradients in the student's last layer (Esser et al. 2021, arXiv:2012.09841,
        Eq. 7), so that it does not depend on the scale of either.
        """
        if not self.config.adaptive:
            return regression.new_tensor(self.config.weight)
        ours, theirs = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (regression, adversarial))
        return reduce(self.config.weight * ours / (theirs + 1e-8), "mean")

    def to(self, device: torch.device | str) -> None:
        """Move teacher, heads and optimiser, a new one: some devices have parameters of their own."""
        state = self.optimizer.state_dict()
        self.discriminator.teacher.to(device)
        self.discriminator.to(device)
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state)

    def update(self, fake: Tensor, condition: Condition, generator: torch.Generator) -> dict[str, float]:
        """One step of the discriminator on as many real latents as ``fake`` has rows.

        Returns:
            Its loss, the shares of real and fake tokens that it tells, its gradient's norm, and of the fakes in the
            features of the teacher's last block: diversity (their spread over that of the real ones) and recall.
        """
        d, config = self.discriminator, self.config
        rows = torch.randint(len(self.latents), (len(fake),), generator=generator, device="cpu")
        real = self.latents[rows].to(fake.device, torch.float32)
        real_condition = {name: value[rows].to(fake.device) for name, value in self.real_condition.items()}
        with torch.no_grad():
            seen_real, real_times = d.features(real, real_condition, generator)
            seen_fake, fake_times = d.features(fake.detach(), condition, generator)
        on_real, on_fake = d.judge(seen_real, real_times, real_condition), d.judge(seen_fake, fake_times, condition)
        loss = (1 - on_real).relu().mean() + (1 + on_fake).relu().mean()
        total = loss
        if config.r1_weight:  # in place of a second derivative, as arXiv:2501.08316, on features
            drawn = (torch.randn(x.shape, generator=generator, dtype=torch.float32, device="cpu") for x in seen_real)
            near = [x + config.r1_noise * noise.to(x.device) for x, noise in zip(seen_real, drawn, strict=True)]
            total = loss + config.r1_weight * (d.judge(near, real_times, real_condition) - on_real).square().mean()
        self.optimizer.zero_grad()
        total.backward()
        for parameter in d.parameters():
            parameter.grad = reduce(parameter.grad, "mean")  # over the processes
        norm = nn.utils.clip_grad_norm_(d.parameters(), config.max_grad_norm)
        self.optimizer.step()
        pooled = {"real": seen_real[-1].mean(1), "fake": seen_fake[-1].mean(1)}
        return {
            "d_loss": float(loss.detach()),
            "d_real_accuracy": float((on_real > 0).float().mean()),
            "d_fake_accuracy": float((on_fake < 0).float().mean()),
            "d_gradient_norm": float(norm),
            "diversity": float(pooled["fake"].std(0).mean() / pooled["real"].std(0).mean()),
            "recall": _recall(pooled["real"], pooled["fake"]),
        }

    def state_dict(self) -> dict[str, Any]:
        """Heads and optimiser."""
        d = self.discriminator
        return {"discriminator": d.state_dict(), "optimizer": get_optimizer_state_dict(d, self.optimizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.discriminator.load_state_dict(state["discriminator"])
        set_optimizer_state_dict(self.discriminator, self.optimizer, state["optimizer"])
