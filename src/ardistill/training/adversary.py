"""The adversarial side of a training: a discriminator with real data to tell the student's images from."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ardistill.config import AdversarialConfig
from ardistill.core.knots import Knots
from ardistill.families import Condition
from ardistill.teacher import Teacher
from ardistill.training.coverage import lies_among
from ardistill.training.critic import Critic
from ardistill.training.discriminator import Discriminator
from ardistill.training.real_images import load_real


class Adversary(Critic):
    """A discriminator with its optimiser and real data, for the training loop.

    Args:
        discriminator: Trained in place.
        latents: Latents of real images, (n, c, h, w).
        condition: Condition of the real images, one row each.
        config: Options of the discriminator's training.
    """

    OPTIONS, NETWORK = "adversarial", "discriminator"
    network: Discriminator
    config: AdversarialConfig

    def __init__(
        self, discriminator: Discriminator, latents: Tensor, condition: Condition, config: AdversarialConfig
    ) -> None:
        super().__init__(discriminator, config)
        self.latents, self.real_condition = latents, condition

    @classmethod
    def of_real(
        cls,
        teacher: Teacher,
        real: str | Path,
        config: AdversarialConfig,
        seed: int = 0,
        mixed_precision: str = "auto",
        knots: Knots | None = None,
    ) -> Adversary:
        """Make an adversary with new heads and the real data of a file that ``ardistill encode`` wrote.

        Args:
            teacher: Teacher whose blocks the heads read.
            real: File that ``encode`` wrote.
            config: Options of the discriminator and its training.
            seed: Seed of the heads' initial weights.
            mixed_precision: What the teacher computes in, as for `TrainingConfig`.
            knots: The student's, for noise levels at its own steps.

        Raises:
            ValueError: The file cannot be read, or does not fit the teacher; or see `Discriminator`.
        """
        discriminator = Discriminator(teacher, config, seed, mixed_precision, knots)
        return cls(discriminator, *load_real(real, teacher), config)

    def student_loss(self, drawn: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """Adversarial loss of the student: lower if the discriminator takes its images for real."""
        d = self.network
        with d.frozen():
            levels = d.draw_levels(len(drawn), generator)
            on_drawn = d.judge(d.look(drawn, condition, levels, generator))
            if self.config.loss == "hinge":
                return -on_drawn.mean()
            with torch.no_grad():
                on_real = d.judge(d.look(*self._real(len(drawn), drawn.device, generator), levels, generator))
        return nn.functional.softplus(on_real - on_drawn).mean()

    def _real(self, count: int, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """Real latents and their conditions, drawn on the CPU."""
        rows = torch.randint(len(self.latents), (count,), generator=generator, device="cpu")
        condition = send_to_device({name: x[rows] for name, x in self.real_condition.items()}, device)
        return self.latents[rows].to(device, torch.float32), condition

    def _configured_weight(self, done: int) -> float:
        """It rises over the first ``rise_steps``."""
        return self.config.weight * min(1.0, (done + 1) / max(self.config.rise_steps, 1))

    def update(
        self, drawn: Tensor, condition: Condition, generator: torch.Generator, measured: bool = True
    ) -> dict[str, Tensor]:
        """Train the discriminator for one step, on equally many real and fake latents.

        Returns:
            Nothing or, if measured, tensors of one element, which are still on the device:
            loss (``d_loss``); shares of real and fake tokens judged correctly, or with ``relativistic`` of pairs; norm
            of the gradient; and, in the features of the teacher's last block, diversity (spread of the fakes over that
            of the real latents) and recall of the batch. Recall is too low for small batches: only its course over the
            training is meaningful.
        """
        d, config, relativistic = self.network, self.config, self.config.loss == "relativistic"
        real = self._real(len(drawn), drawn.device, generator)
        with torch.set_grad_enabled(bool(config.lora_rank)):
            levels = d.draw_levels(len(drawn), generator)
            seen_real = d.look(*real, levels, generator)
            levels = levels if relativistic else d.draw_levels(len(drawn), generator)
            seen_fake = d.look(drawn.detach(), condition, levels, generator)
        on_real, on_fake = d.judge(seen_real), d.judge(seen_fake)
        if relativistic:
            loss = nn.functional.softplus(on_fake - on_real).mean()
        else:
            loss = (1 - on_real).relu().mean() + (1 + on_fake).relu().mean()
        total = loss
        for weight, logits, seen in ((config.r1_weight, on_real, seen_real), (config.r2_weight, on_fake, seen_fake)):
            if weight:  # squared change of the logits: R1 and R2 without a second derivative (arXiv:2501.08316)
                total = total + weight * (d.judge(d.near(seen, generator)) - logits).square().mean()
        norm = self._step(total)
        if not measured:
            return {}
        pooled = {"real": seen_real.features[-1].detach().mean(1), "fake": seen_fake.features[-1].detach().mean(1)}
        right = [on_real > on_fake] * 2 if relativistic else [on_real > 0, on_fake < 0]
        return {
            "d_loss": loss.detach(),
            "d_real_accuracy": right[0].float().mean(),
            "d_fake_accuracy": right[1].float().mean(),
            "d_gradient_norm": norm,
            "diversity": pooled["fake"].std(0).mean() / pooled["real"].std(0).mean(),
            "recall": lies_among(pooled["real"], pooled["fake"]).float().mean(),
        }
