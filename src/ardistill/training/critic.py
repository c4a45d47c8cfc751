"""A network that is trained along with the student and gives it a loss beside the regression."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from ardistill.config import AdversarialConfig, MatchingConfig
from ardistill.core.heads import StepLinear
from ardistill.families import Condition
from ardistill.student import Student
from ardistill.student.lora import add_adapters, share_weights
from ardistill.teacher import Teacher


class CriticNetwork(nn.Module):
    """A network on the teacher's weights, which are neither trained nor saved with it, and their adapters, which are.

    Args:
        teacher: Frozen teacher.
        rank: Rank of adapters on the blocks; 0 leaves them as they are.
        mixed_precision: What the transformer computes in, ``auto``, ``no`` or ``bf16``.
    """

    teacher: Teacher
    transformer: Any
    """The teacher's own, or one on its weights with adapters."""

    def __init__(self, teacher: Teacher, rank: int, mixed_precision: str) -> None:
        super().__init__()
        self.mixed_precision, transformer = mixed_precision, teacher.transformer
        if rank:
            transformer = share_weights(transformer)
            add_adapters(transformer, teacher.transformer.parameters(), teacher.family.block_lists, rank)
        self.__dict__.update(teacher=teacher, transformer=transformer)  # nn.Module would register submodules

    def adapt(self) -> None:
        """Register the adapters, once all else is made, and anew where a device has replaced them."""
        own = self.transformer is not self.teacher.transformer
        self.adapters = nn.ParameterList([x for x in self.transformer.parameters() if x.requires_grad] if own else [])

    def place(self, device: torch.device | str) -> None:
        """Move teacher, adapters and what else is trained."""
        self.teacher.to(device)
        self.transformer.to(device)
        self.adapt()
        self.to(device)


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
        # With a weight per step, only the later steps' weights emit the last estimate, which the critic judges.
        emits_per_step = isinstance(layer, StepLinear) and layer.num_steps > 1
        self.weight = layer.later_weight if emits_per_step else layer.weight

    def release(self) -> None:
        """Remove the hook."""
        self._hook.remove()


class Critic(ABC):
    """A network, its optimiser, and the weight of the loss that it gives the student, for the training loop.

    Args:
        network: Trained in place.
        config: Options of its training.
    """

    OPTIONS: ClassVar[str]
    """Name of the options in a run's ``config.json``."""
    NETWORK: ClassVar[str]
    """Name of the network in a run's ``config.json`` and in checkpoints."""

    def __init__(self, network: CriticNetwork, config: AdversarialConfig | MatchingConfig) -> None:
        self.network, self.config = network, config
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters, rate = self.network.parameters(), self.config.learning_rate
        return torch.optim.AdamW(parameters, rate, betas=(0.0, 0.99), weight_decay=0.0)

    @abstractmethod
    def student_loss(self, drawn: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """The student's loss.

        Args:
            drawn: The student's latents, (b, c, h, w); gradients flow to them.
            condition: One row per latent.
            generator: Source of what is random, on the CPU.
        """

    @abstractmethod
    def update(
        self, drawn: Tensor, condition: Condition, generator: torch.Generator, measured: bool = True
    ) -> dict[str, Tensor]:
        """Train the network, on what the student draws.

        Args:
            drawn: The student's latents, (b, c, h, w).
            condition: One row per latent.
            generator: Source of what is random, on the CPU.
            measured: Whether figures are wanted.

        Returns:
            Nothing or, if measured, tensors of one element for the log, which are still on the device.
        """

    def weight(self, regression: Tensor, loss: Tensor, last: Tensor, done: int = 0) -> Tensor:
        """Weight of the student's loss.

        With ``adaptive``, the configured weight is multiplied by the ratio of both losses' gradients in the student's
        last layer (Esser et al. 2021, arXiv:2012.09841, Eq. 7), so that it does not depend on the scale of either loss.

        Args:
            regression: The regression loss.
            loss: The student's loss.
            last: Weight of the student's last layer, as in the pass that gave both losses.
            done: Steps that the student has been trained for.
        """
        configured = self._configured_weight(done)
        if not self.config.adaptive:
            return regression.new_tensor(configured)
        ours, theirs = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (regression, loss))
        return reduce(configured * ours / (theirs + 1e-8), "mean")

    def _configured_weight(self, done: int) -> float:
        """The configured weight after a number of steps."""
        return self.config.weight

    def to(self, device: torch.device | str) -> None:
        """Move network and optimiser; the optimiser is made anew, as some devices replace the parameters."""
        state = self.optimizer.state_dict()
        self.network.place(device)
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state)

    def _step(self, loss: Tensor) -> Tensor:
        """One optimiser step, with gradients averaged over the processes; the gradient's norm before clipping."""
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.network.parameters():
            parameter.grad = reduce(parameter.grad, "mean") if parameter.grad is not None else None
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Weights of the network and state of its optimiser."""
        held = self.network.state_dict()
        return {self.NETWORK: held, "optimizer": get_optimizer_state_dict(self.network, self.optimizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.network.load_state_dict(state[self.NETWORK])
        set_optimizer_state_dict(self.network, self.optimizer, state["optimizer"])
