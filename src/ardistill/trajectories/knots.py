"""The knots of a student: the solver states between which it steps, given as indices or as noise levels and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ardistill.core.knots import Knots
from ardistill.teacher import select_knots as select_knots

CONDITIONINGS = ("recorded", "uniform")
"""Times that a student's network can be conditioned on: those of the recorded states, or even ones, as the authors'."""


def check_conditioning(conditioning: str) -> None:
    """Check that the conditioning is one of ``CONDITIONINGS``.

    Raises:
        ValueError: It is not.
    """
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"expected a conditioning of {' or '.join(CONDITIONINGS)}, got {conditioning!r}")


def nested_indices(solver_steps: int, num_steps: int) -> tuple[int, ...]:
    """Indices of the solver states nearest to the knots of ``num_steps`` uniform steps (τ_s = T s / S in the paper).

    Raises:
        ValueError: There are more steps than solver steps.
    """
    if not 1 <= num_steps <= solver_steps:
        raise ValueError(
            f"expected 1 to {solver_steps} steps (the recorded solver steps), got {num_steps}; "
            "record with more solver steps"
        )
    return tuple(round(i * solver_steps / num_steps) for i in range(num_steps + 1))


def steps_or_knots(num_steps: int, knots: Sequence[int] | None) -> int | Sequence[int]:
    """The knots if they are given, else the number of steps; `TrajectoryDataset` takes either.

    Args:
        num_steps: Steps of the student.
        knots: Indices of the solver's states between which the steps run; None for uniform steps.

    Raises:
        ValueError: The number of knots does not fit the number of steps.
    """
    if knots is None:
        return num_steps
    if len(knots) != num_steps + 1:
        raise ValueError(
            f"expected {num_steps + 1} knots for {num_steps} steps, got {list(knots)}; give the solver state before "
            "the first step and after each step"
        )
    return knots


def knot_indices(solver: Knots, steps: int | Sequence[int] | Knots) -> tuple[int, ...]:
    """Indices of the solver states that a student's steps run between, from 0 to the number of solver steps.

    Args:
        solver: The solver's knots.
        steps: A number of steps, uniform in the index; or the indices themselves; or a student's knots.

    Raises:
        ValueError: The solver has no such states.
    """
    if isinstance(steps, int):
        return nested_indices(solver.num_steps, steps)
    if isinstance(steps, Knots):
        own, wanted = (list(zip(x.alpha, x.sigma, strict=True)) for x in (solver, steps))
        if steps.prediction_type != solver.prediction_type or not set(wanted) <= set(own):
            raise ValueError(
                f"the student's knots are not among the states of the {solver.num_steps} solver steps; record its "
                "teacher with the number of solver steps that the student was distilled with"
            )
        return tuple(own.index(state) for state in wanted)
    found = tuple(steps)
    if len(found) < 2 or found[0] != 0 or found[-1] != solver.num_steps or [*found] != sorted(set(found)):
        raise ValueError(
            f"expected knots as states of the solver, rising from 0 to {solver.num_steps} (its steps), got {[*found]}; "
            "state 0 is the noise, the last one the image"
        )
    return found


def same_states(first: Knots, second: Knots) -> bool:
    """Whether two sets of knots have the same states, whatever times the network is conditioned on."""
    return (first.prediction_type, first.alpha, first.sigma) == (second.prediction_type, second.alpha, second.sigma)


def condition_uniformly(knots: Knots, num_train_timesteps: int = 1000) -> Knots:
    """The same states with the conditioning times of the authors' code, (T - 1) (1 - s / S) at step s."""
    steps = knots.num_steps
    return replace(knots, timesteps=tuple((num_train_timesteps - 1) * (1 - s / steps) for s in range(steps)))
