"""The knots of a trajectory and the closed-form solver step between two of them.

A state is x_t = alpha x0 + sigma noise. Whatever the network predicts (epsilon, v, x0, flow, or a flow reversed), the
step of a first-order solver from one knot to the next is ``a x + b prediction``: DDIM (Song et al. 2021, Eq. 12,
eta = 0) for variance-preserving schedules, Euler for flow matching. Coefficients are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow", "reversed_flow")


def solver_coefficients(
    prediction_type: str, alpha: float, sigma: float, next_alpha: float, next_sigma: float
) -> tuple[float, float]:
    """Coefficients (a, b) of ``next = a x + b prediction``; the step to (1, 0) gives x̂0, to (0, 1) the noise."""
    if prediction_type == "epsilon":
        return next_alpha / alpha, next_sigma - next_alpha * sigma / alpha
    if prediction_type == "sample":
        return next_sigma / sigma, next_alpha - next_sigma * alpha / sigma
    if prediction_type == "v_prediction":  # x̂0 = alpha x - sigma v, noise = alpha v + sigma x
        return next_alpha * alpha + next_sigma * sigma, next_sigma * alpha - next_alpha * sigma
    b = next_sigma * alpha - next_alpha * sigma  # of a flow, x̂0 = x - sigma v, noise = x + alpha v; reversed, it is -v
    return next_alpha + next_sigma, b if prediction_type == "flow" else -b


@dataclass(frozen=True)
class Knots:
    """The solver states between which ``num_steps`` steps run, noisiest first, and the times of the steps."""

    prediction_type: str
    timesteps: tuple[float, ...]
    """Conditioning time of each step, in model units; num_steps numbers."""
    alpha: tuple[float, ...]
    """Signal level of each state, num_steps + 1 numbers; the last is the clean image's."""
    sigma: tuple[float, ...]
    """Noise level of each state, num_steps + 1 numbers."""

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"unknown prediction type {self.prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
        if not len(self.timesteps) + 1 == len(self.alpha) == len(self.sigma):
            counts = [len(x) for x in (self.timesteps, self.alpha, self.sigma)]
            raise ValueError(f"expected n timesteps, n + 1 alphas and n + 1 sigmas, got {counts}; give one per state")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Knots:
        """Undo ``dataclasses.asdict``, also after a passage through JSON."""
        return cls(data["prediction_type"], tuple(data["timesteps"]), tuple(data["alpha"]), tuple(data["sigma"]))

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def coefficients(self, target: str) -> list[tuple[float, float]]:
        """(a, b) of every step, in float64: to the next ``state``, or to the ``denoised`` image."""
        states = list(zip(self.alpha, self.sigma, strict=True))
        ends = [(1.0, 0.0)] * self.num_steps if target == "denoised" else states[1:]
        return [solver_coefficients(self.prediction_type, *x, *y) for x, y in zip(states[:-1], ends, strict=True)]
