"""Attention of the folded pass: every step of a trajectory at once, each attending to the steps before it.

Plain calls of ``scaled_dot_product_attention``, without a mask matrix.

Shapes: b batch, s steps, h heads, t tokens of one state, d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ardistill.core.history import MASKS, extend_mask, of_image


class _LaidOut(torch.autograd.Function):
    """The identity; the gradient that it hands on is laid out in memory as what it was given.

    cuDNN's attention keeps a plan for each layout of query, key and value, in which the layout of the output's gradient
    stands, too. A slice of a larger gradient, such as that of ``torch.stack``, would be read with the plan of a whole
    one, or the other way round, if both occur in a process (torch 2.11): beyond its end, or at wrong places.
    """

    @staticmethod
    def forward(ctx: Any, attended: Tensor) -> Tensor:
        ctx.heads_first = attended.is_contiguous()
        return attended.view_as(attended)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        if ctx.heads_first:
            return gradient.contiguous()
        return gradient.transpose(1, 2).contiguous().transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Attention of some of the folded rows, to be put together with that of the others."""
    return _LaidOut.apply(F.scaled_dot_product_attention(query, key, value, **options))  # type: ignore[no-any-return]


def history_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: str = "M4",
    image: slice | Tensor = slice(None),
    attn_mask: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    num_steps: int,
    **options: Any,
) -> Tensor:
    """Attend from each step to the steps of its own trajectory that the mask shows; no mask matrix is made.

    Args:
        query: After q-norm and rotary embedding, (b*s, h, t, d).
        key: Keys after norm and rotary embedding, (b*s, h_kv, t, d); h_kv < h for grouped-query attention.
        value: Projected values, shape of the keys.
        mask: A key of ``MASKS``.
        image: Which of the t tokens are the image's. Text tokens of earlier steps are left out; each step attends to
            its own. Where the place differs between rows: indices, (b*s, tokens).
        attn_mask: The model's own mask of a step's tokens, broadcastable to (b*s, h, t, t); earlier steps' image
            tokens are never masked.
        gate: (1,): a step attends to itself as the teacher does, and its attention to the earlier steps, times the
            gate, is added. None: one softmax over both.
        num_steps: Steps folded into the rows, 1 or more.
        options: Further options of ``scaled_dot_product_attention`` (scale, dropout_p, enable_gqa).

    Returns:
        Attention output, (b*s, h, t, d).

    Raises:
        ValueError: The rows are not a multiple of ``num_steps``.
    """
    rows, heads, tokens, dim = key.shape
    if rows % num_steps:
        raise ValueError(f"expected rows folded from {num_steps} steps each, got {rows} rows; fold (b, s) into (b*s)")
    batch = rows // num_steps
    queries, keys, values = (x.unflatten(0, (batch, num_steps)) for x in (query, key, value))
    has_extras = isinstance(image, Tensor) or image != slice(None) or attn_mask is not None  # text tokens or a mask
    images = image.unflatten(0, (batch, num_steps)).unbind(1) if isinstance(image, Tensor) else [image] * num_steps

    def merge(x: Tensor) -> Tensor:  # (b*s, h, t, d) -> (b, h, s*t, d): a view where the heads were split from tokens
        return x.transpose(1, 2).reshape(batch, num_steps * tokens, heads, dim).transpose(1, 2)

    merged = None if has_extras else (merge(key), merge(value))

    def of_steps(steps: list[int], whole: int | None) -> list[Tensor]:
        """Keys and values of these steps: all tokens of step ``whole``, the image tokens of the others."""
        if merged and steps == [*range(steps[0], steps[-1] + 1)]:  # views of contiguous steps: autograd saves 1 buffer
            part = slice(steps[0] * tokens, (steps[-1] + 1) * tokens)
            return [x[:, :, part] for x in merged]
        return [
            torch.cat([x[:, i] if i == whole else of_image(x[:, i], images[i]) for i in steps], dim=2)
            for x in (keys, values)
        ]

    visible = [MASKS[mask](step) for step in range(num_steps)]
    if gate is not None:
        to_itself = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)
        to_earlier = []
        for step, seen in enumerate(visible):
            if seen[:-1]:
                past_keys, past_values = of_steps(seen[:-1], None)
                to_earlier.append(_attend(queries[:, step], past_keys, past_values, **options))
            else:
                to_earlier.append(torch.zeros_like(queries[:, step]))
        return torch.addcmul(to_itself, gate.to(to_itself), torch.stack(to_earlier, dim=1).flatten(0, 1))
    outputs = []
    for step, seen in enumerate(visible):
        step_keys, step_values = of_steps(seen, step)
        if attn_mask is not None:
            step_mask = attn_mask if len(attn_mask) == 1 else attn_mask.unflatten(0, (batch, num_steps))[:, step]
            options["attn_mask"] = extend_mask(step_mask, step_keys.shape[2])
        outputs.append(_attend(queries[:, step], step_keys, step_values, **options))
    return torch.stack(outputs, dim=1).flatten(0, 1)


def earlier_sums(sums: Tensor, mask: str = "M4", *, num_steps: int) -> Tensor:
    """For each folded row, the sum over the earlier steps that it sees; zero where there are none.

    Args:
        sums: What linear attention sums over the tokens of a step, (b*s, h, d + 1, d).
        mask: A key of ``MASKS``.
        num_steps: Steps folded into the rows, 1 or more.
    """
    steps = sums.unflatten(0, (-1, num_steps)).unbind(1)
    none = torch.zeros_like(steps[0])
    found = [sum((steps[i] for i in MASKS[mask](step)[:-1]), none) for step in range(num_steps)]
    return torch.stack(found, dim=1).flatten(0, 1)


def earlier_rows(rows: list[tuple[Tensor, Tensor]], mask: str = "M4", *, num_steps: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of the earlier steps that the next folded row sees, where attention runs row by row.

    Args:
        rows: Keys and values of the rows before it, each (1, h, t, d).
        mask: A key of ``MASKS``.
        num_steps: Steps folded into the rows, 1 or more.
    """
    step = len(rows) % num_steps
    return [rows[len(rows) - step + i] for i in MASKS[mask](step)[:-1]]
