"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ardistill.families import Condition, Family


@dataclass(frozen=True)
class GuidedPrediction:
    """A teacher's guided prediction for some samples at any time.

    What all times share is made before and lies on the teacher's device, so that a call copies nothing to the device
    and waits for nothing, except for what the transformer does itself.
    """

    family: Family
    """The transformer's family."""
    transformer: Any
    """The teacher's transformer."""
    condition: Condition
    """One row per sample; followed by their unconditional rows, if both halves are computed in one batch."""
    unconditional: Condition | None = None
    """The unconditional branch, where prompts of different lengths without a mask keep it out of the batch."""
    scale: Tensor | None = None
    """Guidance scale of each sample, (b,); None: the conditional prediction alone."""
    channels: int | None = None
    """Number of guided channels; all if None."""
    second: tuple[Any, float] | None = None
    """The transformer for low noise of a teacher of two, and the time below which it predicts."""

    @torch.no_grad()
    def __call__(self, states: Tensor, timestep: float | Tensor) -> Tensor:
        """Predict from states on the teacher's device.

        Args:
            states: (b, c, h, w).
            timestep: Time of all of them or, (b,), of each, which a teacher of two transformers does not take.
        """
        if self.scale is None:
            return self._call(states, timestep, self.condition)
        if self.unconditional is None:
            twice = torch.cat([timestep, timestep]) if isinstance(timestep, Tensor) else timestep
            conditional, unconditional = self._call(torch.cat([states, states]), twice, self.condition).chunk(2)
        else:
            conditional = self._call(states, timestep, self.condition)
            unconditional = self._call(states, timestep, self.unconditional)
        output = guide(conditional, unconditional, self.scale, self.channels)
        return self.family.rescale_guided(output, conditional) if self.family.rescale_guided else output

    def _call(self, states: Tensor, timestep: float | Tensor, condition: Condition) -> Tensor:
        """The network's prediction in float32, without the channels of a learned sigma."""
        if isinstance(timestep, Tensor):
            times, transformer = timestep, self.transformer
        else:
            times = torch.full((len(states),), timestep, dtype=torch.float32, device=states.device)
            low, boundary = self.second or (self.transformer, 0.0)
            transformer = low if timestep < boundary else self.transformer
        found = self.family.call(transformer, states, times, condition)
        return found[:, : self.family.channels(transformer)].float()


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor, channels: int | None = None) -> Tensor:
    """Extrapolate from the unconditional prediction through the conditional one.

    Args:
        conditional: Prediction for the condition, (b, c, h, w).
        unconditional: Prediction for the unconditional branch (empty prompt or label), of the same shape.
        scale: Guidance scale of each row, (b,); 1 gives the conditional prediction.
        channels: Number of channels, counted from the first, that are guided; all if None.
    """
    guided, output = slice(0, channels), conditional.clone()
    weight = scale.to(output.dtype).view(-1, *(1 for _ in output.shape[1:]))
    output[:, guided] = torch.lerp(unconditional[:, guided], conditional[:, guided], weight)
    return output
