"""The moving average of the weights (EMA): diffusers', which may be kept in host memory, and change places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Averages(EMAModel):
    """diffusers' EMA of a student's trained weights, whose decay rises at first.

    Args:
        parameters: The trained weights.
        decay: Decay of the average after the first steps.
        foreach: Whether a few kernels update all weights.
        on_host: Whether the averages are kept in host memory, pinned where a GPU copies from it. Each is brought to its
            weight's device to be updated there, so that the numbers are the same; the host does not wait for it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float, foreach: bool, on_host: bool) -> None:
        super().__init__(parameters, decay=decay, use_ema_warmup=True, power=0.75, foreach=foreach)
        self.on_host = on_host
        self._copied: torch.cuda.Event | None = None
        """Recorded behind the last copies to the host."""
        if on_host:
            self.shadow_params = [_on_host(x) for x in self.shadow_params]

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move each average towards its weight."""
        if not self.on_host:
            self._move(self.shadow_params, [*parameters])
            return
        kept, done = self.shadow_params, self.optimization_step
        for average, weight in zip(kept, parameters, strict=True):
            self.shadow_params, self.optimization_step = [average.to(weight.device, non_blocking=True)], done
            self._move(self.shadow_params, [weight])
            average.copy_(self.shadow_params[0], non_blocking=True)
        self.shadow_params = kept
        self._note_copies()

    def _move(self, averages: list[Tensor], weights: list[nn.Parameter]) -> None:
        """Move some averages, one pass over the memory if a few kernels do it, where diffusers makes two."""
        if not self.foreach:
            super().step(weights)
            return
        self.optimization_step += 1
        decay = self.get_decay(self.optimization_step)
        torch._foreach_lerp_(averages, [x.detach() for x in weights], 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: Iterable[nn.Parameter]) -> None:
        """Exchange averages and weights, one after the other: no second copy of all of them is made."""
        for average, weight in zip(self.shadow_params, parameters, strict=True):
            before = weight.detach().clone()
            weight.copy_(average, non_blocking=self.on_host)
            average.copy_(before, non_blocking=self.on_host)
        self._note_copies()

    def _note_copies(self) -> None:
        if any(x.is_pinned() for x in self.shadow_params[:1]):
            self._copied = torch.cuda.Event()
            self._copied.record()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; the tensors are the ones in use, which the device has finished to write."""
        if self._copied is not None:
            self._copied.synchronize()
        return super().state_dict()


def _on_host(x: Tensor) -> Tensor:
    return x.cpu().pin_memory() if x.is_cuda else x
