"""Monitors training health: stops on non-finite gradients, warns of gradient spikes and sample collapse."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import Any

from torch import Tensor

COLLAPSED = 0.5
"""Samples have collapsed if their spread is less than this fraction of the spread of the teacher's samples."""
_REMEDY = (
    "go on in a new run (distill --start, finetune --student) from the last checkpoint before it, which is kept if "
    "there is one; adapters start anew"
)
_LOG = logging.getLogger(__name__)


class TrainingDivergedError(ValueError):
    """Loss or gradients are NaN or infinite; the last checkpoint was written before that."""


class Watchdog:
    """Monitor of one run; ``state_dict`` makes it continue after a resume."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=110)
        self._before = 0.0
        """Median norm before the current rise."""
        self._rose_at: int | None = None
        """Step of the current rise, if there is one."""

    def state_dict(self) -> dict[str, Any]:
        """The norms seen and the current rise, as JSON values."""
        return {"norms": [*self._norms], "before": self._before, "rose_at": self._rose_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._norms.extend(state["norms"])
        self._before, self._rose_at = state["before"], state["rose_at"]

    @property
    def suspects(self) -> bool:
        """Whether the gradient has risen recently and not come back, so that the present weights may be bad."""
        before, now = self._windows()
        return self._rose_at is not None or (len(before) >= 20 and max(now) > 10 * median(before))

    def _windows(self) -> tuple[list[float], list[float]]:
        """Norms of up to 100 steps, and of the 10 steps after them."""
        norms = [*self._norms]
        return norms[:-10], norms[-10:]

    def check_gradient(self, step: int, norm: float) -> None:
        """Check the norm of an optimiser step's gradient before clipping; one that is not finite changes no weights.

        A rise ends when the norm comes down again, or after 1,000 steps, when it counts as the new level.

        Args:
            step: Number of the optimiser step, from 1.
            norm: Norm of the gradient of all trained weights.

        Raises:
            TrainingDivergedError: The norm is NaN or infinite, which it is if the loss is.
        """
        if not math.isfinite(norm):
            raise TrainingDivergedError(
                f"step {step}: expected finite gradients, their norm is {norm}; they did not change the weights and "
                "the last checkpoint is good: try a lower learning_rate, more lr_warmup_steps, or mixed_precision no"
            )
        self._norms.append(norm)
        before, now = self._windows()
        if self._rose_at is not None and (median(now) <= 10 * self._before or step >= self._rose_at + 1000):
            self._rose_at = None
        if self._rose_at is None and len(before) >= 20 and min(now) > 10 * median(before):
            self._rose_at, self._before = step, median(before)
            _LOG.warning(
                "step %d: the gradient's norm is 10 times or more what it was (%.3g, before %.3g): if the loss rises, "
                f"lower learning_rate or max_grad_norm and {_REMEDY}",
                step, median(now), self._before,
            )  # fmt: skip

    def check_diversity(self, step: int, drawn: Tensor, expected: Tensor) -> float:
        """Compare the spread of the student's samples with that of the teacher's samples from the same noise.

        Args:
            step: Optimiser steps done.
            drawn: The student's latents, (n, ...), n at least 2.
            expected: The teacher's latents from the same noise and conditions, (n, ...).

        Returns:
            The ratio of their standard deviations over n, each averaged over all other axes; 1 is equally diverse.
        """
        ratio = float(drawn.float().std(0).mean() / expected.float().std(0).mean())
        if not ratio >= COLLAPSED:  # also for NaN
            _LOG.warning(
                "step %d: the spread of the student's samples is %.2f times that of the teacher's: they collapse; "
                f"lower learning_rate or the weight of the second loss and {_REMEDY}",
                step, ratio,
            )  # fmt: skip
        return ratio
