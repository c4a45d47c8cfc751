"""The state of a training: everything that the next step depends on, which is what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from ardistill.config import TrainingConfig
from ardistill.files import checkpoints
from ardistill.files.checkpoint_writer import CheckpointWriter
from ardistill.student import Student
from ardistill.training.averages import Averages
from ardistill.training.critic import Critic
from ardistill.training.optimizers import make_optimizer, plain_state, restored_state
from ardistill.training.watchdog import Watchdog

OptimizerKind = Literal["plain", "fused"]
"""How AdamW and EMA are computed; both differ by rounding. ``plain``: as torch and diffusers do by default. ``fused``:
each in a few kernels over all weights, where AdamW leaves the weights alone if the gradient is not finite."""


def optimizer_kind(device: torch.device) -> OptimizerKind:
    """The kind that suits a device: ``fused`` for CUDA, where every kernel that is launched costs time."""
    return "fused" if device.type == "cuda" else "plain"


def saved_kind(path: Path) -> OptimizerKind:
    """The kind of the run that wrote a checkpoint; checkpoints of earlier versions are all plain."""
    return checkpoints.read_state(path).get("optimizer_kind", "plain")


_CRITIC = "adversary"
"""Name of the critic in checkpoints, which those of earlier versions have."""


class TrainingState:
    """Student, optimiser, learning rate, EMA, watchdog and critic after a number of steps.

    Args:
        student: Placed on its device and, with ``shard``, divided over the processes; trained in place.
        config: Optimiser, learning rate schedule and EMA.
        critic: Trained along with the student; None if the regression is all.
        kind: How AdamW and EMA are computed, which a run keeps from its first step to its last.
    """

    def __init__(
        self, student: Student, config: TrainingConfig, critic: Critic | None, kind: OptimizerKind = "plain"
    ) -> None:
        named = [*student.named_parameters()]
        self._names = [name for name, p in named if p.requires_grad]
        self._saved = {*self._names, *(name for name, _ in student.named_buffers())}
        self.student, self.critic, self.watchdog = student, critic, Watchdog()
        self.parameters = [p for _, p in named if p.requires_grad]
        """The student's trained parameters."""
        self.warmup_steps = 0 if critic is None else critic.config.warmup_steps
        """First steps, in which only the critic is trained."""
        self.kind = kind
        self.optimizer = make_optimizer(_parameter_groups(student, config), config, kind == "fused")
        self.scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=max(config.max_steps - self.warmup_steps, 1),
        )
        foreach = kind == "fused" and not config.shard  # torch copies no list of DTensors at once
        self.ema = Averages(self.parameters, config.ema_decay, foreach, config.ema_device == "cpu")
        self.step = 0
        """Optimiser steps done."""
        self.good_step = 0
        """Step of the last checkpoint at which nothing looked wrong."""

    @property
    def trains_student(self) -> bool:
        """Whether the next step trains the student, and not the critic alone."""
        return self.step >= self.warmup_steps

    def skip_if_not_finite(self, norm: Tensor) -> None:
        """Let the next step of a fused optimiser change nothing if the gradient's norm is NaN or infinite.

        The device decides, so that nobody waits for the norm: this is how torch's GradScaler has a step skipped.
        """
        if self.kind == "fused":
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]

    def finish_step(self) -> None:
        """Advance learning rate and EMA after an optimiser step, and count the step."""
        if self.trains_student:
            self.scheduler.step()
            self.ema.step(self.parameters)
        self.step += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the student its EMA weights, in evaluation mode, for the duration of the context."""
        self.ema.swap(self.parameters)
        self.student.eval()
        try:
            yield
        finally:
            self.ema.swap(self.parameters)
            self.student.train()

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint, as nested dicts of tensors and JSON values.

        Frozen weights are left out, because they are the teacher's, and so is the optimiser's state before its first
        step, because it is then empty. The student's and the EMA's tensors are the ones in use, not copies.
        """
        student = self.student
        tree = {
            "step": self.step,
            "good": self.good_step,
            "watchdog": self.watchdog.state_dict(),
            "optimizer_kind": self.kind,
            "made_of": {"student": asdict(student.config), "transformer": student.described},
            "student": {name: x for name, x in student.state_dict().items() if name in self._saved},
            "optimizer": plain_state(self._optimizer_state()) if self.step > self.warmup_steps else {},
            "scheduler": self.scheduler.state_dict(),
            "ema": self.ema.state_dict()
            | {"shadow_params": dict(zip(self._names, self.ema.shadow_params, strict=True))},
        }
        return tree if self.critic is None else tree | {_CRITIC: self.critic.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a state from what ``state_dict`` returned, once `checkpoints.load` has filled its tensors.

        Weights and EMA need no copy: ``state_dict`` returns the tensors in use, which are filled in place.
        """
        if saved["optimizer"]:
            state = restored_state(saved["optimizer"], self._optimizer_state())
            set_optimizer_state_dict(self.student, self.optimizer, state)
        self.scheduler.load_state_dict(saved["scheduler"])
        self.ema.load_state_dict(saved["ema"] | {"shadow_params": None})
        if self.critic is not None:
            self.critic.load_state_dict(saved[_CRITIC])
        self.step = saved["step"]
        self.good_step = saved.get("good", self.step)  # checkpoints of earlier versions lack it and the watchdog
        if "watchdog" in saved:
            self.watchdog.load_state_dict(saved["watchdog"])

    def _optimizer_state(self) -> Any:
        """The optimiser's state by the names of the weights; its tensors are the ones in use."""
        return get_optimizer_state_dict(self.student, self.optimizer)

    def save(self, writer: CheckpointWriter) -> None:
        """Have a checkpoint written, and all but the newest ones and the last good one deleted."""
        writer.save(self.step, self.state_dict(), self.good_step)

    def load(self, path: Path) -> None:
        """Read a checkpoint, in place."""
        self.step = checkpoints.step_of(path)  # decides whether the optimiser has a state to be filled
        self.load_state_dict(checkpoints.load(path, self.state_dict()))


def _parameter_groups(student: Student, config: TrainingConfig) -> list[dict[str, Any]]:
    """The trained parameters and, where they have a learning rate of their own, the gates."""
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    gates = [p for name, p in trained if name.endswith(".history_gate")] if config.gate_rate != 1 else []
    own = {id(p) for p in gates}
    weights = {"params": [p for _, p in trained if id(p) not in own]}
    return [weights, {"params": gates, "lr": config.gate_rate * config.learning_rate}] if gates else [weights]
