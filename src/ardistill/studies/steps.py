"""The number of steps of a student, or the knots that they run between."""

from __future__ import annotations

from collections.abc import Sequence


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
        raise ValueError(f"expected {num_steps + 1} knots for {num_steps} steps, got {list(knots)}")
    return knots
