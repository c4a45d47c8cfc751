"""Watches over a training: what is surely lost stops it, what looks wrong is told of, each with what to try."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import Any

from torch import Tensor

COLLAPSED = 0.5
"""Samples that lie less than so many times as far apart as the teacher's have collapsed."""
_GO_ON = (
    "go on in a new run (distill --start, finetune --student) from the last checkpoint before it, which is kept if "
    "there is one; adapters begin anew"
)
_LOG = logging.getLogger(__name__)


class TrainingDivergedError(ValueError):
    """Loss or gradients are no numbers any more; the last checkpoint is of before."""


class Watchdog:
    """Of one run; goes on after a resume from its ``state_dict``."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=110)
        self._before = 0.0
        self._rose_at: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"norms": [*self._norms], "before": self._before, "rose_at": self._rose_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._norms.extend(state["norms"])
        self._before, self._rose_at = state["before"], state["rose_at"]

    @property
    def suspects(self) -> bool:
        """Whether a gradient has risen lately and not come back: weights of now may not be good ones."""
        before, now = self._windows()
        return self._rose_at is not None or (len(before) >= 20 and max(now) > 10 * median(before))

    def _windows(self) -> tuple[list[float], list[float]]:
        """Norms of up to 100 steps, and of the 10 after them."""
        norms = [*self._norms]
        return norms[:-10], norms[-10:]

    def gradient(self, step: int, norm: float) -> None:
        """Look at the norm of an optimiser step's gradient, before it is clipped and before weights are changed.

        A rise is over once the norm is down again, or after 1,000 steps: then it is the new level.

        Raises:
            TrainingDivergedError: It is infinite or not a number, as it is if the loss is.
        """
        if not math.isfinite(norm):
            raise TrainingDivergedError(
                f"step {step}: expected finite gradients, their norm is {norm}; the weights are those of before and "
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
                f"lower learning_rate or max_grad_norm and {_GO_ON}",
                step, median(now), self._before,
            )  # fmt: skip

    def diversity(self, step: int, drawn: Tensor, expected: Tensor) -> float:
        """Compare how far samples lie apart with how far the teacher's do, from the same noise.

        Args:
            step: Optimiser steps done.
            drawn: The student's latents, (n, ...), n 2 or more.
            expected: The teacher's, of the same noise and conditions.

        Returns:
            The ratio of their standard deviations over n, means over all else; 1 is as diverse.
        """
        ratio = float(drawn.float().std(0).mean() / expected.float().std(0).mean())
        if not ratio >= COLLAPSED:  # not a number, too
            _LOG.warning(
                "step %d: the student's samples lie %.2f times as far apart as the teacher's: they collapse; lower "
                f"learning_rate or adversarial.weight and {_GO_ON}",
                step, ratio,
            )  # fmt: skip
        return ratio
