"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

import torch
from torch import Tensor


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
