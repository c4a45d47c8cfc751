"""The probability-flow ODE from noise to image, solved from knot to knot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ardistill.core.knots import Knots
from ardistill.progress import bar as progress_bar


@dataclass(frozen=True)
class Trajectory:
    """Solution of the teacher's probability-flow ODE, noisiest first."""

    states: Tensor
    """x_t at every knot, (b, n + 1, c, h, w)."""
    denoised: Tensor
    """x̂0 that each solver step computed, (b, n, c, h, w); entry i belongs to the step that arrives at state i + 1."""


def integrate(
    predict: Callable[[Tensor, float], Tensor], state: Tensor, knots: Knots, progress: bool = False
) -> Trajectory:
    """Integrate from the first knot to the last, one prediction per step.

    Args:
        predict: (state, timestep) -> prediction of the knots' type, shaped as the state.
        state: State at the first knot, (b, c, h, w).
        knots: The solver's grid.
        progress: Show a bar.
    """
    to_state, to_denoised = knots.coefficients("state"), knots.coefficients("denoised")
    states, denoised = [state], []
    for s in progress_bar(range(knots.num_steps), disable=not progress):
        prediction = predict(state, knots.timesteps[s])
        denoised.append(to_denoised[s][0] * state + to_denoised[s][1] * prediction)
        state = to_state[s][0] * state + to_state[s][1] * prediction
        states.append(state)
    return Trajectory(torch.stack(states, 1), torch.stack(denoised, 1))
