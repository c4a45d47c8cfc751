"""Watches over a training: what is surely lost stops it, what looks wrong is told of, each with what to try."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median

from torch import Tensor

COLLAPSED = 0.5
"""Samples that lie less than so many times as far apart as the teacher's have collapsed."""
_LOG = logging.getLogger(__name__)


class TrainingDivergedError(ValueError):
    """Loss or gradients are no numbers any more; the last checkpoint is of before."""


class Watchdog:
    """Of one run. What it has seen is not saved: after a resume it looks anew."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=110)
        self._before: float | None = None

    @property
    def rising(self) -> bool:
        """Whether the gradient has risen and not come back."""
        return self._before is not None

    def gradient(self, step: int, norm: float) -> None:
        """Look at the norm of an optimiser step's gradient, before it is clipped and before weights are changed.

        Raises:
            TrainingDivergedError: It is infinite or not a number, as it is if the loss is.
        """
        if not math.isfinite(norm):
            raise TrainingDivergedError(
                f"step {step}: expected finite gradients, their norm is {norm}; the weights are those of before and "
                "the last checkpoint is good: try a lower learning_rate, more lr_warmup_steps, or mixed_precision no"
            )
        self._norms.append(norm)
        before, now = [*self._norms][:-10], [*self._norms][-10:]
        if self._before is not None:
            if median(now) <= 10 * self._before:
                self._before = None
        elif len(before) >= 20 and min(now) > 10 * median(before):
            self._before = median(before)
            _LOG.warning(
                "step %d: the gradient's norm is 10 times or more what it was (%.3g, before %.3g): if the loss rises, "
                "go on from the last checkpoint before it, which is kept (distill --start, finetune --student), with a "
                "lower learning_rate or max_grad_norm",
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
                "step %d: the student's samples lie %.2f times as far apart as the teacher's: they collapse; go on "
                "from the last checkpoint before it, which is kept (distill --start, finetune --student), with a lower "
                "learning_rate or adversarial.weight",
                step, ratio,
            )  # fmt: skip
        return ratio
