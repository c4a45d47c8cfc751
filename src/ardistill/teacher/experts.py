"""A teacher of two transformers for two parts of the path: one where noise is high, one where it is low (Wan 2.2).

Its pipeline calls ``transformer`` at times down to ``boundary_ratio`` of the training timesteps, and ``transformer_2``
below. Trajectories go through both. A student of the whole path is one transformer, which starts from the one that
predicts at more of its steps; a student of one expert draws the part of the path at which this expert predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ardistill.core.config import EXPERTS, StudentConfig
from ardistill.core.knots import Knots
from ardistill.teacher.companions import Companions
from ardistill.teacher.schedule import select_knots

SECOND = EXPERTS["low_noise"]
"""The component for low noise."""


def boundary_of(companions: Mapping[str, Any], scheduler: Any) -> float | None:
    """The time below which the second transformer predicts; None of a teacher of one.

    Raises:
        ValueError: It is not said.
    """
    if SECOND not in companions:
        return None
    ratio = companions.get("boundary_ratio")
    if not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        raise ValueError(
            f"a teacher of two transformers needs a boundary_ratio between 0 and 1 in model_index.json, got {ratio!r}; "
            "download or save the pipeline again"
        )
    return float(ratio) * scheduler.config.num_train_timesteps


def move_second(companions: Mapping[str, Any], device: Any) -> None:
    """Move the second transformer to a device, if there is one and it has been loaded."""
    if isinstance(companions, Companions):
        companions.move(SECOND, device)


def part_to_start_from(teacher: Any, knots: Knots) -> str:
    """The component that a student of these knots starts from; of two that cover as many steps, the first."""
    boundary = boundary_of(teacher.companions, teacher.scheduler) or 0.0
    low = sum(timestep < boundary for timestep in knots.timesteps)
    return SECOND if 2 * low > knots.num_steps else "transformer"


def start_from(teacher: Any, knots: Knots) -> Any:
    """The transformer that a student of these knots starts from; a second one is loaded only if it is that."""
    return teacher.second[0] if part_to_start_from(teacher, knots) == SECOND else teacher.transformer


def expert_knots(teacher: Any, knots: Knots, expert: str) -> Knots:
    """The part of a student's knots between which one expert of a teacher of two predicts.

    Args:
        teacher: A teacher of two transformers.
        knots: Knots of the whole path.
        expert: ``high_noise`` or ``low_noise``.

    Raises:
        ValueError: The teacher has one transformer, or the expert predicts at none of these steps.
    """
    boundary = boundary_of(teacher.companions, teacher.scheduler)
    if boundary is None:
        raise ValueError(
            f"{teacher.name or 'the teacher'} has one transformer, and so no {expert} expert; leave --expert out"
        )
    high = sum(timestep >= boundary for timestep in knots.timesteps)
    first, last = (0, high) if expert == "high_noise" else (high, knots.num_steps)
    if first == last:
        raise ValueError(
            f"the {expert} expert predicts at none of the times {', '.join(f'{x:g}' for x in knots.timesteps)}, as the "
            f"teacher changes its transformer at {boundary:g}; choose other --knots, or more steps"
        )
    return select_knots(knots, range(first, last + 1))


def check_expert(teacher: Any, config: StudentConfig) -> None:
    """Check that the student of an expert has the knots of this expert, and its states as target.

    Raises:
        ValueError: It has not.
    """
    if not config.expert:
        return
    if config.target != "state":
        raise ValueError(
            f"the student of one expert needs target state, which the other one starts from, got {config.target}"
        )
    if expert_knots(teacher, config.knots, config.expert) != config.knots:
        raise ValueError(
            f"the {config.expert} expert does not predict at all of the times "
            f"{', '.join(f'{x:g}' for x in config.knots.timesteps)}; take the knots that expert_knots gives"
        )
