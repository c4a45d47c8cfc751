"""Choices that recipes and the command ``distill`` offer alike: the knots of a student, and the times it is given."""

from __future__ import annotations

from collections.abc import Sequence

from ardistill.student import StudentConfig
from ardistill.teacher import Teacher

CONDITIONINGS = ("recorded", "uniform")
"""Times that a student's network is given: those of the recorded states, or evenly spaced (the authors' code)."""


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


def conditioned(config: StudentConfig, conditioning: str, teacher: Teacher) -> StudentConfig:
    """A student's configuration with the times that its network is given.

    Args:
        config: The configuration with the recorded times.
        conditioning: One of `CONDITIONINGS`.
        teacher: Its scheduler gives the range of uniform times.

    Raises:
        ValueError: ``conditioning`` is unknown.
    """
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"conditioning is {' or '.join(CONDITIONINGS)}, got {conditioning!r}")
    if conditioning == "recorded":
        return config
    return config.conditioned_uniformly(teacher.scheduler.config.num_train_timesteps)
