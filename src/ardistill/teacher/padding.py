"""Conditions of prompts that were encoded to different lengths, joined into one batch by padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ardistill.families import Condition


def can_join(parts: Sequence[Condition]) -> bool:
    """Whether conditions fit in one batch: their texts have one length, or an attention mask marks the padding."""
    lengths = {tuple(value.shape[1:2] for value in part.values()) for part in parts}
    return len(lengths) == 1 or any("mask" in key for key in parts[0])


def join_conditions(parts: Sequence[Condition]) -> Condition:
    """Concatenate the rows of conditions; where a mask marks the padding, text is padded to the longest.

    Raises:
        ValueError: The lengths differ and there is no mask.
    """
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].ndim > 1 and len({value.shape[1] for value in values}) > 1:
            if not can_join(parts):
                lengths = [value.shape[1] for value in values]
                raise ValueError(f"prompts were encoded to different lengths {lengths} without a mask; pad them alike")
            longest = max(value.shape[1] for value in values)
            values = [pad_tokens(value, longest) for value in values]
        joined[name] = torch.cat([value.to(values[0].device) for value in values])
    return joined


def pad_tokens(value: Tensor, tokens: int) -> Tensor:
    """Append zeros to embeddings or masks, shape (n, t, ...), up to the length ``tokens``."""
    padding = value.new_zeros(len(value), tokens - value.shape[1], *value.shape[2:])
    return torch.cat([value, padding], dim=1)
