"""A teacher of two transformers for two parts of the path: one where noise is high, one where it is low (Wan 2.2).

Its pipeline calls ``transformer`` at times down to ``boundary_ratio`` of the training timesteps, and ``transformer_2``
below. Trajectories go through both. A student is one transformer; it starts from the one that predicts at more of its
steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ardistill.core.knots import Knots
from ardistill.teacher.companions import Companions

SECOND = "transformer_2"
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
