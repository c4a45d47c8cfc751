"""The adversarial side of a training: discriminator, its optimiser, real data, and the weight of its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce, send_to_device
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from ardistill.config import AdversarialConfig
from ardistill.core.heads import StepLinear
from ardistill.core.knots import Knots
from ardistill.families import Condition
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training.coverage import lies_among
from ardistill.training.discriminator import Discriminator
from ardistill.training.real_images import load_real


class LastLayer:
    """The student's output layer, in which the gradients of both losses are compared.

    Args:
        student: Its layer is watched by a forward hook until ``release`` is called.
    """

    weight: Tensor
    """Weight that the latest forward pass used: with FSDP the gathered one, which exists only for that pass."""

    def __init__(self, student: Student) -> None:
        layer = student.transformer.get_submodule(student.family.head[-1])
        self._hook = layer.register_forward_hook(self._keep)

    def _keep(self, layer: Any, *_: Any) -> None:
        # With a weight per step, only the later steps' weights emit the last estimate, which the discriminator judges.
        emits_per_step = isinstance(layer, StepLinear) and layer.num_steps > 1
        self.weight = layer.later_weight if emits_per_step else layer.weight

    def release(self) -> None:
        """Remove the hook."""
        self._hook.remove()


class Adversary:
    """A discriminator with its optimiser and real data, for the training loop.

    Args:
        discriminator: Trained in place.
        latents: Latents of real images, (n, c, h, w).
        condition: Condition of the real images, one row each.
        config: Options of the discriminator's training.
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

    def generator_loss(self, fake: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """Adversarial loss of the student: lower if the discriminator takes its images for real.

        Args:
            fake: The student's latents, (b, c, h, w); gradients flow to them.
            condition: One row per latent.
            generator: Source of noise levels, noise and, with ``relativistic``, real rows, on the CPU.
        """
        d = self.discriminator
        with d.frozen():
            levels = d.draw_levels(len(fake), generator)
            on_fake = d.judge(d.look(fake, condition, levels, generator))
            if self.config.loss == "hinge":
                return -on_fake.mean()
            with torch.no_grad():
                on_real = d.judge(d.look(*self._real(len(fake), fake.device, generator), levels, generator))
        return nn.functional.softplus(on_real - on_fake).mean()

    def _real(self, count: int, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """Real latents and their conditions, drawn on the CPU."""
        rows = torch.randint(len(self.latents), (count,), generator=generator, device="cpu")
        condition = send_to_device({name: x[rows] for name, x in self.real_condition.items()}, device)
        return self.latents[rows].to(device, torch.float32), condition

    def weight(self, regression: Tensor, adversarial: Tensor, last: Tensor, done: int = 0) -> Tensor:
        """Weight of the adversarial loss, which rises over the first ``rise_steps``.

        With ``adaptive`` it is multiplied by the ratio of both losses' gradients in the student's last layer (Esser et
        al. 2021, arXiv:2012.09841, Eq. 7), so that it does not depend on the scale of either loss.

        Args:
            regression: The regression loss.
            adversarial: The adversarial loss.
            last: Weight of the student's last layer, as in the pass that gave both losses.
            done: Steps that the student has been trained for.
        """
        configured = self.config.weight * min(1.0, (done + 1) / max(self.config.rise_steps, 1))
        if not self.config.adaptive:
            return regression.new_tensor(configured)
        ours, theirs = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (regression, adversarial))
        return reduce(configured * ours / (theirs + 1e-8), "mean")

    def to(self, device: torch.device | str) -> None:
        """Move teacher, heads and optimiser; the optimiser is made anew, as some devices replace the parameters."""
        state = self.optimizer.state_dict()
        self.discriminator.place(device)
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state)

    def update(
        self, fake: Tensor, condition: Condition, generator: torch.Generator, measured: bool = True
    ) -> dict[str, Tensor]:
        """Train the discriminator for one step, on equally many real and fake latents.

        Args:
            fake: The student's latents, (b, c, h, w).
            condition: One row per latent.
            generator: Source of the real rows, noise levels and noise, on the CPU.
            measured: Whether this step's figures are wanted.

        Returns:
            Nothing or, if measured, tensors of one element, which are still on the device:
            loss (``d_loss``); shares of real and fake tokens judged correctly, or with ``relativistic`` of pairs; norm
            of the gradient; and, in the features of the teacher's last block, diversity (spread of the fakes over that
            of the real latents) and recall of the batch. Recall is too low for small batches: only its course over the
            training is meaningful.
        """
        d, config, relativistic = self.discriminator, self.config, self.config.loss == "relativistic"
        real = self._real(len(fake), fake.device, generator)
        with torch.set_grad_enabled(bool(config.lora_rank)):
            levels = d.draw_levels(len(fake), generator)
            seen_real = d.look(*real, levels, generator)
            levels = levels if relativistic else d.draw_levels(len(fake), generator)
            seen_fake = d.look(fake.detach(), condition, levels, generator)
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

    def _step(self, loss: Tensor) -> Tensor:
        """One optimiser step, with gradients averaged over the processes; the gradient's norm before clipping."""
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.discriminator.parameters():
            parameter.grad = reduce(parameter.grad, "mean") if parameter.grad is not None else None
        norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Weights of the heads and state of their optimiser."""
        d = self.discriminator
        return {"discriminator": d.state_dict(), "optimizer": get_optimizer_state_dict(d, self.optimizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.discriminator.load_state_dict(state["discriminator"])
        set_optimizer_state_dict(self.discriminator, self.optimizer, state["optimizer"])
