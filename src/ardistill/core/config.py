"""A student's configuration, and what follows from it: its solver step, its guidance, its gates."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ardistill.core.history import MASKS
from ardistill.core.knots import Knots

TARGETS = ("state", "denoised", "anchored")
OUTPUTS = ("solver", "direct")
EXPERTS = {"": "transformer", "high_noise": "transformer", "low_noise": "transformer_2"}
"""``StudentConfig.expert`` -> the component of a pipeline that such a student is."""


@dataclass(frozen=True)
class StudentConfig:
    """Configuration of a student: its knots, history, target, output and guidance."""

    knots: Knots
    """The solver states between which the student steps: their timesteps, alphas and sigmas."""
    history_layers: int
    """N: how many of the lowest layers see earlier steps; 0 is step distillation."""
    mask: str = "M2"
    """Earlier steps that these layers attend to: M1 none, M2 the previous one, M3 the first, M4 all."""
    target: str = "state"
    """``state``: input x at knot s, target x at knot s + 1. ``denoised``: input the previous x̂0 (first: noise), target
    x̂0, as in the authors' code. ``anchored``: input alpha x̂0 + sigma x_T with the exact noise, target x̂0."""
    output: str = "solver"
    """``solver``: the network predicts what the teacher predicts, and the closed-form solver step follows.
    ``direct``: a head per step emits the target."""
    gated: bool = True
    """What is seen of earlier steps is added through a gate per layer that starts closed, so that training starts
    where a student without history does. False: one softmax over all steps, as in the paper."""
    teacher: str = ""
    """Name of the teacher, as given to ``Teacher.from_pretrained``."""
    fingerprint: str = ""
    """SHA-256 of the teacher's weights; empty if it is not known."""
    guidance_range: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest guidance scale of the trajectories. Where both are equal, the student absorbs the scale;
    else the scale is an input of the student."""
    sample_shapes: tuple[tuple[int, ...], ...] = ()
    """(c, h, w) or (c, f, h, w) of the latents that the student was distilled on; empty if they are not known."""
    lora_rank: int = 0
    """Rank of the adapters that are trained beside the teacher's weights; 0: all weights are trained, as those of a
    saved student are."""
    expert: str = ""
    """The expert of a teacher of two transformers whose part of the path the student draws: ``high_noise``, from noise
    to the state in the middle where the teacher changes its transformer, or ``low_noise``, from there on; empty where
    the student draws the whole path."""

    def __post_init__(self) -> None:
        for name, known in (("mask", MASKS), ("target", TARGETS), ("output", OUTPUTS), ("expert", EXPERTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.target == "denoised" and self.output != "direct":
            raise ValueError("target 'denoised' needs output='direct': the solver cannot start from a denoised image")
        for name in ("history_layers", "lora_rank"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"expected {name} as a whole number, got {getattr(self, name)!r}")
        if not 1 <= self.knots.num_steps <= 8:
            raise ValueError(f"expected 1 to 8 steps, got {self.knots.num_steps}")
        if self.lora_rank < 0:
            raise ValueError(f"expected a lora_rank of 1 or more, or 0 to train all weights, got {self.lora_rank}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StudentConfig:
        """Undo ``dataclasses.asdict``, also after a passage through JSON."""
        shapes = tuple(tuple(shape) for shape in data["sample_shapes"])
        facts = {"guidance_range": tuple(data["guidance_range"]), "sample_shapes": shapes}
        data = {"gated": False, **data}  # students saved before gates existed do not have the entry
        return cls(**{**data, **facts, "knots": Knots.from_dict(data["knots"])})

    @property
    def has_gates(self) -> bool:
        """Whether layers with history have a gate; they have none if no step sees an earlier one."""
        return self.gated and any(len(MASKS[self.mask](step)) > 1 for step in range(self.knots.num_steps))

    @property
    def takes_guidance(self) -> bool:
        """Whether the student was distilled at a range of guidance scales, so that the scale is its input.

        If not, the student absorbs the one scale. This does not depend on whether the teacher's network embeds guidance
        (`Architecture.embeds_guidance`).
        """
        return self.guidance_range[0] < self.guidance_range[1]

    @property
    def guidance_scale(self) -> float:
        """The scale that is used where none is given: the middle of the range."""
        return sum(self.guidance_range) / 2

    def check_guidance(self, scale: float | Tensor | None) -> None:
        """Refuse a guidance scale that the student was not distilled at, whether the scale is its input or not.

        Args:
            scale: One scale, or one for each row; None stands for the scale that the student was distilled at.

        Raises:
            ValueError: A scale is outside of ``guidance_range``.
        """
        if scale is None or (isinstance(scale, Tensor) and not self.fingerprint):  # nothing is known of its training
            return
        (low, high), given = self.guidance_range, torch.as_tensor(scale)
        slack = max(1e-4, high * torch.finfo(given.dtype).eps) if given.is_floating_point() else 0.0  # of rounding
        given = given.float()
        if not bool(((given >= low - slack) & (given <= high + slack)).all()):
            known = f"{low:g} to {high:g}" if self.takes_guidance else f"{low:g} alone"
            wrong = f"{float(given.min()):g}" + (f" to {float(given.max()):g}" if given.numel() > 1 else "")
            raise ValueError(
                f"the student was distilled at guidance {known}, got {wrong}; leave the scale out, or distil another "
                "student at it"
            )

    @functools.cached_property
    def coefficients(self) -> list[tuple[float, float]]:
        """(a, b) of each step, whose estimate is a x + b prediction; float64, as alpha may be tiny."""
        return self.knots.coefficients("state" if self.target == "state" else "denoised")

    def estimate(self, prediction: Tensor, inputs: Tensor, step: int) -> Tensor:
        """Estimate of the target, (b, c, h, w), from the network's prediction and input at one step.

        The estimate is float32 whatever the dtype of the weights, as the solver step is made here.
        """
        if self.output == "direct":
            return prediction.float()
        a, b = self.coefficients[step]  # numbers, not tensors: nothing is copied to the device
        return a * inputs.float() + b * prediction.float()

    def next_input(self, estimate: Tensor, noise: Tensor, step: int) -> Tensor:
        """The input that follows an estimate made at ``step``: the estimate, or (``anchored``) its re-noised form."""
        if self.target != "anchored":
            return estimate
        return self.knots.alpha[step + 1] * estimate + self.knots.sigma[step + 1] * noise
