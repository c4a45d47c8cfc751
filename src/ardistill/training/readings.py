"""Numbers of the device that the host acts on: at once, or one step late, so that the device has no need to wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Reading:
    """Numbers on their way from the device to the host.

    Args:
        values: Numbers, each a tensor of one element on the same device.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        whole = [x.full_tensor() if isinstance(x, DTensor) else x for x in values]
        numbers = torch.stack([x.detach().float().reshape(()) for x in whole])
        self._copied = torch.cuda.Event() if numbers.is_cuda else None
        self._numbers = numbers.to("cpu", non_blocking=self._copied is not None)  # then into pinned memory
        if self._copied is not None:
            self._copied.record()

    def numbers(self) -> list[float]:
        """The numbers, once the device has computed them; work that was queued later is not waited for."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers.tolist()


class Readings:
    """Readings and what is to be done with each, in order.

    Args:
        late: Whether to act on a step's readings when the step after it is queued, instead of at once.
    """

    def __init__(self, late: bool) -> None:
        self._late = late
        self._before: list[tuple[Reading, Callable[[list[float]], None]]] = []
        """Readings of the step before the present one."""
        self._now: list[tuple[Reading, Callable[[list[float]], None]]] = []
        """Readings of the present step."""

    def add(self, values: Sequence[Tensor], act: Callable[[list[float]], None]) -> None:
        """Read numbers, and call ``act`` with them: now or, if late, when the next step ends or `settle` is called."""
        self._now.append((Reading(values), act))
        if not self._late:
            self.settle()

    def end_step(self) -> None:
        """Act on the readings of the step before, as all work of the present step is queued."""
        due, self._before, self._now = self._before, self._now, []
        _act(due)

    def settle(self) -> None:
        """Act on all readings, those of the present step too."""
        due, self._before, self._now = [*self._before, *self._now], [], []
        _act(due)


def _act(due: Sequence[tuple[Reading, Callable[[list[float]], None]]]) -> None:
    for reading, act in due:
        act(reading.numbers())
