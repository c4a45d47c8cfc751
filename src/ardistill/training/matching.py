"""Distribution matching: the student's images are moved to where the teacher's are denser and its own are rarer.

A copy of the teacher with adapters, the *fake score*, learns to denoise what the student draws; the teacher itself
denoises towards what it draws. Where both are given a noised image of the student's, the difference of their estimates
is the gradient by which the student's distribution comes nearer to the teacher's. Real images are not needed. Source:
Yin et al. 2023, arXiv:2311.18828, Eq. 7 and 8, with a regression beside it, as there; several updates of the fake score
for one of the student: Yin et al. 2024, arXiv:2405.14867, Sec. 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ardistill.config import MatchingConfig
from ardistill.devices import precision
from ardistill.families import Condition
from ardistill.teacher import Teacher
from ardistill.training.critic import Critic, CriticNetwork
from ardistill.training.noise_levels import NoiseLevels, beside


class FakeScore(CriticNetwork):
    """The teacher with adapters, which learns to denoise what the student draws, without guidance.

    Args:
        teacher: Frozen teacher, at the guidance of the trajectories.
        config: Rank of the adapters, and the noise levels.
        mixed_precision: What both networks compute in, ``auto``, ``no`` or ``bf16``.
    """

    def __init__(self, teacher: Teacher, config: MatchingConfig, mixed_precision: str = "auto") -> None:
        super().__init__(teacher, config.lora_rank, mixed_precision)
        self.levels = NoiseLevels(teacher.knots(100), config.noise_levels)
        self.to(teacher.device)
        self.adapt()

    def forward(self, noised: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """The prediction for noised latents, (b, c, h, w), in float32."""
        family, transformer = self.teacher.family, self.transformer
        scale = self.teacher.guidance_scale if self.teacher.embeds_guidance else 1.0
        given, _ = family.take_guidance(self.teacher.transformer, noised, condition, scale)
        with precision(self.mixed_precision, transformer):
            found = family.call(transformer, noised, times, given)
        return found[:, : family.channels(transformer)].float()


class Matching(Critic):
    """A fake score with its optimiser, for the training loop.

    Args:
        network: Trained in place.
        config: Options of its training.
    """

    OPTIONS, NETWORK = "matching", "fake_score"
    network: FakeScore
    config: MatchingConfig

    def student_loss(self, drawn: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """Half the squared distance to the student's images as the gradient would move them (arXiv:2311.18828, Eq. 7).

        The gradient is divided by each image's mean distance to the teacher's estimate (Eq. 8).
        """
        network, teacher = self.network, self.network.teacher
        scale = torch.full((len(drawn),), teacher.guidance_scale, device="cpu")  # looked at there without a wait
        with torch.no_grad():
            noised, times, a, b = self._noised(drawn, generator)
            with precision(network.mixed_precision, teacher.transformer):
                guided = teacher.guided(noised, {"guidance": scale, **condition})(noised, times)
            aim, ours = a * noised + b * guided, a * noised + b * network(noised, times, condition)
            distance = (drawn - aim).abs().flatten(1).mean(1).clamp(min=1e-8)
            gradient = (ours - aim) / beside(distance, drawn)
        return 0.5 * (drawn - (drawn.detach() - gradient)).square().mean()

    def update(
        self, drawn: Tensor, condition: Condition, generator: torch.Generator, measured: bool = True
    ) -> dict[str, Tensor]:
        """Train the fake score to denoise the student's images, ``updates`` times, at levels drawn anew each time.

        Returns:
            Nothing or, if measured, of the last update: loss (``d_loss``), the mean squared error of the prediction,
            and norm of the gradient.
        """
        drawn = drawn.detach()
        for _ in range(self.config.updates):
            noised, times, a, b = self._noised(drawn, generator)
            loss = (self.network(noised, times, condition) - (drawn - a * noised) / b).square().mean()
            norm = self._step(loss)
        return {"d_loss": loss.detach(), "d_gradient_norm": norm} if measured else {}

    def _noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised latents, (b, c, h, w), their times, and a and b of their clean estimate, ``a x + b prediction``."""
        levels = self.network.levels.draw(len(latents), generator)
        noised, times = self.network.levels.noised(latents, levels, generator)
        a, b = self.network.levels.to_denoised(levels, latents)
        return noised, times, a, b
