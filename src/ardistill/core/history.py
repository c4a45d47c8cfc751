"""The idea of ARD in one file: attend from each step of a trajectory to itself and to the steps before it.

Rows of a *folded* batch are (batch * steps), step fastest, noisiest first. The teacher's own forward code runs; only
its attention call is intercepted. Each row has its own timestep, so every block of tokens gets the time of its state
(the paper's token-wise time embedding). Only the self-attention of the lower N layers sees other rows: its call of
``scaled_dot_product_attention`` attends to the keys and values of the visible steps of the same sample beside its own.
When sampling, the steps run one after the other and a cache holds those keys and values.

The paper has one softmax over a step's own keys and the earlier ones. This takes attention away from the keys that the
teacher attends to, so an untrained student differs from its teacher. *Gated*, the attention to earlier steps is added
through one learned factor per attention module that starts at zero (after Alayrac et al. 2022, arXiv:2204.14198,
Sec. 2.2): the untrained student equals one without history, with history in any number of layers.

Source: Kim et al. 2025, arXiv:2504.11295, Fig. 1 and Sec. 3 (block-wise causal attention).

Shapes: b batch, s steps, h heads, t tokens of one state, d head dimension.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ardistill.core.mixing import MixedIn, placement

MASKS = {
    "M1": lambda step: [step],
    "M2": lambda step: [*range(max(step - 1, 0), step + 1)],
    "M3": lambda step: sorted({0, step}),
    "M4": lambda step: [*range(step + 1)],
}
"""Steps that a step attends to, noisiest first and the step itself last.

M1: itself. M2: itself and the previous step. M3: itself and the first step, whose input is pure noise. M4: itself and
all earlier steps.
"""


def history_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_steps: int,
    mask: str = "M4",
    image: slice | Tensor = slice(None),
    attn_mask: Tensor | None = None,
    gate: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Attend from each step to the steps of its own trajectory that the mask shows; no mask matrix is made.

    Args:
        query: After q-norm and rotary embedding, (b*s, h, t, d).
        key: Keys after norm and rotary embedding, (b*s, h_kv, t, d); h_kv < h for grouped-query attention.
        value: Projected values, shape of the keys.
        num_steps: Steps folded into the rows, 1 or more.
        mask: A key of ``MASKS``.
        image: Which of the t tokens are the image's. Text tokens of earlier steps are left out; each step attends to
            its own. Where the place differs between rows: indices, (b*s, tokens).
        attn_mask: The model's own mask of a step's tokens, broadcastable to (b*s, h, t, t); earlier steps' image
            tokens are never masked.
        gate: (1,): a step attends to itself as the teacher does, and its attention to the earlier steps, times the
            gate, is added. None: one softmax over both.
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
            torch.cat([x[:, i] if i == whole else _of_image(x[:, i], images[i]) for i in steps], dim=2)
            for x in (keys, values)
        ]

    visible = [MASKS[mask](step) for step in range(num_steps)]
    if gate is not None:
        to_itself = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)
        to_earlier = []
        for step, seen in enumerate(visible):
            if seen[:-1]:
                past_keys, past_values = of_steps(seen[:-1], None)
                to_earlier.append(F.scaled_dot_product_attention(queries[:, step], past_keys, past_values, **options))
            else:
                to_earlier.append(torch.zeros_like(queries[:, step]))
        return to_itself + gate.to(to_itself) * torch.stack(to_earlier, dim=1).flatten(0, 1)
    outputs = []
    for step, seen in enumerate(visible):
        step_keys, step_values = of_steps(seen, step)
        if attn_mask is not None:
            step_mask = attn_mask if len(attn_mask) == 1 else attn_mask.unflatten(0, (batch, num_steps))[:, step]
            options["attn_mask"] = _extend_mask(step_mask, step_keys.shape[2])
        outputs.append(F.scaled_dot_product_attention(queries[:, step], step_keys, step_values, **options))
    return torch.stack(outputs, dim=1).flatten(0, 1)


def _of_image(x: Tensor, image: slice | Tensor) -> Tensor:
    """The image tokens, (b, h, t, d) -> (b, h, image tokens, d)."""
    if isinstance(image, slice):
        return x[:, :, image]
    return x.gather(2, image[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _extend_mask(mask: Tensor, num_keys: int) -> Tensor:
    """Extend a mask of a step's own keys, (..., t) -> (..., num_keys): the keys before them are all visible."""
    return F.pad(mask, (num_keys - mask.shape[-1], 0), value=True if mask.dtype == torch.bool else 0.0)


class HistoryError(ValueError, RuntimeError):
    """A transformer with history was called in a way that its history cannot follow."""


def _miscounted(expected: int, found: int) -> HistoryError:
    return HistoryError(
        f"a layer with history ran out of order: expected {expected} cached steps, found {found}; call the transformer "
        "once per step, and disable block-skipping caches (transformer.disable_cache())"
    )


@dataclass(eq=False)
class Layout:
    """How the rows of one call of the transformer are laid out. The call itself fills in where the image stands."""

    num_steps: int = 1
    """Steps folded into the rows."""
    step: int = 0
    """The step of every row, in a call that holds one step of each sample."""
    cache: dict[int, list[tuple[Tensor, Tensor]]] | None = None
    """Layer -> keys and values of the earlier steps, in a call that holds one step; the call adds those of its step."""
    image_tokens: int | None = None
    """Image tokens of a sample; None where attention sees image tokens alone."""
    image_start: Tensor | None = None
    """Index of each row's first image token, (rows,); None where ``History.text`` determines it."""
    guidance: Tensor | float | None = None
    """Guidance scale of each row, (rows,), or one for all rows, where the scale is an input of the student."""

    def check_step(self) -> None:
        """Check that every layer with history has run in this step.

        Raises:
            HistoryError: One was skipped.
        """
        for past in (self.cache or {}).values():
            if len(past) != self.step + 1:
                raise _miscounted(self.step + 1, len(past))


class _Now(threading.local):
    """The current call of this thread: its history and its layout."""

    call: tuple[History | None, Layout | None] = (None, None)


_NOW = _Now()


@dataclass(eq=False)
class History:
    """State that the attached modules of one transformer share: the mask, and the layout of the current call.

    Each thread has a layout of its own, so that several threads can draw with one transformer.
    """

    mask: str = "M4"
    text: str = ""  # where text keys stand in joint attention: first, last or nowhere

    @property
    def layout(self) -> Layout | None:
        """Layout of the current call; None outside of a call."""
        history, layout = _NOW.call
        return layout if history is self else None

    def current(self) -> Layout:
        """The layout of the current call.

        Raises:
            HistoryError: There is none.
        """
        layout = self.layout
        if layout is None:
            raise HistoryError(
                "a student's transformer was called directly or by another pipeline; call the Student or the exported "
                "pipeline"
            )
        return layout

    @contextlib.contextmanager
    def use_layout(self, layout: Layout | None) -> Iterator[None]:
        """Use this layout for every call of this thread while the context lasts."""
        before, _NOW.call = _NOW.call, (self, layout)
        try:
            yield
        finally:
            _NOW.call = before

    def attend(
        self,
        layer: int,
        gate: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Stand in for ``scaled_dot_product_attention`` in one layer."""
        layout = self.current()
        cache, step, image = layout.cache, layout.step, self._image(layout, key.shape[2])
        if cache is None:
            steps = layout.num_steps
            return history_attention(query, key, value, steps, self.mask, image, attn_mask, gate, **options)
        past = cache.setdefault(layer, [])
        if len(past) != step:
            raise _miscounted(step, len(past))
        earlier = [past[i] for i in MASKS[self.mask](step)[:-1]]
        past.append((_of_image(key, image), _of_image(value, image)))
        if gate is not None:
            to_itself = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)
            if not earlier:
                return to_itself
            keys, values = (torch.cat(x, dim=2) for x in zip(*earlier, strict=True))
            return to_itself + gate.to(to_itself) * F.scaled_dot_product_attention(query, keys, values, **options)
        keys = torch.cat([*(k for k, _ in earlier), key], dim=2)
        values = torch.cat([*(v for _, v in earlier), value], dim=2)
        if attn_mask is not None:
            options["attn_mask"] = _extend_mask(attn_mask, keys.shape[2])
        return F.scaled_dot_product_attention(query, keys, values, **options)

    def _image(self, layout: Layout, tokens: int) -> slice | Tensor:
        """Which of ``tokens`` tokens are the image's."""
        count, start = layout.image_tokens, layout.image_start
        if self.text and count is None:
            raise HistoryError("transformer.forward(...) skips the student's hooks; call transformer(...)")
        if count is None or count == tokens:
            return slice(None)
        if start is not None:
            return start[:, None] + torch.arange(count, device=start.device)
        return slice(-count, None) if self.text == "first" else slice(count)


class _Intercept(TorchFunctionMode):
    """Sends the one ``scaled_dot_product_attention`` of an attention module through its history."""

    def __init__(self, history: History, layer: int, gate: Tensor | None, calls: list[int]) -> None:
        super().__init__()
        self.history, self.layer, self.gate, self.calls = history, layer, gate, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.unflatten:  # Dynamo traces torch.unflatten under a mode, not Tensor.unflatten
            func = torch.unflatten
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls.append(self.layer)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        if bound.pop("is_causal", False):
            raise ValueError("causal attention cannot have a history; set history_layers to 0, or change the teacher")
        return self.history.attend(self.layer, self.gate, **bound)


class _HistoryForward(MixedIn):
    """Mixed into the class of an attention module: its own forward, with its attention call intercepted."""

    prefix = "History"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        calls: list[int] = []  # not an attribute of the mode: torch.compile cannot read one back
        with _Intercept(self.history, self.history_layer, self.history_gate, calls):  # type: ignore[attr-defined]
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if len(calls) != 1:
            raise HistoryError(
                f"expected one call of scaled_dot_product_attention in {type(self).__name__}, saw {len(calls)}; "
                "set the native attention backend, transformer.set_attention_backend('native'), and the model's own "
                "attention processors in the layers with history"
            )
        return output


def attach_history(modules: Iterable[nn.Module], mask: str = "M4", text: str = "", gated: bool = False) -> History:
    """Let these attention modules, lowest layer first, see earlier steps. Weights and their names stay as they are.

    Args:
        modules: Self-attention, or joint attention over image and text.
        mask: A key of ``MASKS``.
        text: Where text keys stand in joint attention: ``first``, ``last``, or nowhere.
        gated: Whether each module gets a gate, its parameter ``history_gate``; else one softmax covers all keys.

    Raises:
        ValueError: Unknown mask, or a module that has a history already.
    """
    if mask not in MASKS:
        raise ValueError(f"unknown mask {mask!r}; known: {', '.join(MASKS)}")
    history = History(mask, text)
    for layer, module in enumerate(modules):
        if isinstance(module, _HistoryForward):
            raise ValueError("this transformer has a history already; load a fresh copy of the teacher")
        _HistoryForward.mix_into(module)
        module.history, module.history_layer = history, layer  # type: ignore[assignment]
        gate = nn.Parameter(torch.zeros(1, **placement(module))) if gated else None
        module.register_parameter("history_gate", gate)
    return history
