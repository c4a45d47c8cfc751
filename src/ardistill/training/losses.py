"""Inputs, targets and loss of the regression onto the teacher's trajectories; pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from ardistill.core.config import TARGETS
from ardistill.core.knots import Knots


def _check_target(target: str) -> None:
    """Raise a ValueError unless the target is one of ``TARGETS``."""
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")


def inputs_and_targets(states: Tensor, denoised: Tensor, knots: Knots, target: str) -> tuple[Tensor, Tensor]:
    """Teacher-forced input and target of every step.

    Args:
        states: x_t at the knots, (b, s + 1, c, h, w), noisiest first.
        denoised: x̂0 of the solver step that arrives at states 1..s, (b, s, c, h, w).
        knots: The student's knots.
        target: ``state``, ``denoised`` or ``anchored``.

    Returns:
        Inputs and targets, each (b, s, c, h, w).

    Raises:
        ValueError: The target is unknown.
    """
    _check_target(target)
    if target == "state":
        return states[:, :-1], states[:, 1:]
    noise = states[:, :1]
    if target == "denoised":
        return torch.cat([noise, denoised[:, :-1]], dim=1), denoised
    noised = [
        a * x + b * noise[:, 0]
        for a, b, x in zip(knots.alpha[1:-1], knots.sigma[1:-1], denoised.unbind(1)[:-1], strict=True)
    ]
    return torch.stack([noise[:, 0], *noised], dim=1), denoised


def step_weights(knots: Knots, target: str) -> Tensor:
    """Loss weight of each step, (s,): 1 or, for ``anchored``, alpha² of the next knot.

    An ``anchored`` estimate is scaled by that alpha where it enters the next step's input.

    Raises:
        ValueError: The target is unknown.
    """
    _check_target(target)
    if target != "anchored":
        return torch.ones(knots.num_steps, dtype=torch.float32, device="cpu")
    return torch.tensor([a**2 for a in knots.alpha[1:]], dtype=torch.float32, device="cpu")


def regression_loss(estimates: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the steps of the squared error to the teacher (R in the paper).

    Args:
        estimates: The student's estimates, (b, s, c, h, w).
        targets: Their targets, (b, s, c, h, w).
        weights: Loss weight of each step, (s,).

    Returns:
        The weighted loss, and the unweighted mean squared error of each step, (s,), detached.
    """
    errors = (estimates.float() - targets.float()).square().mean(dim=(0, *range(2, targets.ndim)))
    return (errors * weights.to(errors)).mean(), errors.detach()
