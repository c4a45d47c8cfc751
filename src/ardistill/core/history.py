"""The idea of ARD in one file: attend from each step of a trajectory to itself and to the steps before it.

The teacher's own forward code runs. Each row has its own timestep, so every block of tokens gets the time of its state
(the paper's token-wise time embedding). Only the self-attention of the lower N layers sees other rows: its call of
``scaled_dot_product_attention``, bound to `attend`, attends to the keys and values of the visible steps of the same
sample beside its own. In training, the steps are *folded* into the rows, (batch * steps), step fastest, noisiest first;
in sampling they run one after the other, and a cache holds earlier keys and values.

The paper has one softmax over a step's own keys and the earlier ones. This takes attention away from the keys that the
teacher attends to, so an untrained student differs from its teacher. *Gated*, the attention to earlier steps is added
through one learned factor per attention module that starts at zero (after Alayrac et al. 2022, arXiv:2204.14198,
Sec. 2.2): the untrained student equals one without history, with history in any number of layers.

Source: Kim et al. 2025, arXiv:2504.11295, Fig. 1 and Sec. 3 (block-wise causal attention).

Shapes: b batch, s steps, h heads, t tokens of one state, d head dimension.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardistill.core.binding import HistoryError, bypassed, rebind
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


def of_image(x: Tensor, image: slice | Tensor) -> Tensor:
    """The image tokens, (b, h, t, d) -> (b, h, image tokens, d)."""
    if isinstance(image, slice):
        return x if image == slice(None) else x[:, :, image]
    return x.gather(2, image[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def extend_mask(mask: Tensor, num_keys: int) -> Tensor:
    """Extend a mask of a step's own keys, (..., t) -> (..., num_keys): the keys before them are all visible."""
    return F.pad(mask, (num_keys - mask.shape[-1], 0), value=True if mask.dtype == torch.bool else 0.0)


@dataclass(eq=False)
class Layout:
    """How the rows of one call of the transformer are laid out. The call itself fills in where the image stands."""

    step: int = 0
    """The step of every row, in a call that holds one step of each sample."""
    cache: dict[int, list[tuple[Tensor, ...]]] | None = None
    """Layer -> keys and values of the earlier steps, in a call that holds one step; the call adds those of its step and
    lets go, as ``()``, of those that no later step sees."""
    image_tokens: int | None = None
    """Image tokens of a sample; None where attention sees image tokens alone."""
    image_start: Tensor | None = None
    """Index of each row's first image token, (rows,); None where ``History.text`` determines it."""
    folded: Callable[..., Any] | None = None
    """Attention of folded rows, `ardistill.student.folded.history_attention`, or for linear attention their
    `earlier_sums`, or for attention row by row their `earlier_rows`; None where rows are of one step."""
    guidance: Tensor | float | None = None
    """Guidance scale of each row, (rows,), or one for all rows, where the scale is an input of the student."""


def check_cached(layers: Iterable[list], steps: int) -> None:
    """Check that the cache holds this many steps of each of these layers.

    Raises:
        HistoryError: A layer was skipped, or ran twice.
    """
    for past in layers:
        if len(past) != steps:
            raise HistoryError(
                f"a layer with history ran out of order: expected {steps} cached steps, found {len(past)}; call the "
                "transformer once per step, and disable block-skipping caches (transformer.disable_cache())"
            )


class _Now(threading.local):
    """The current call of this thread: the layout of each history in it; and, while a block runs, the block's call."""

    layouts: dict[History, Layout | None] = {}  # noqa: RUF012, replaced as a whole
    block: _BlockCall | None = None


class _Traced:
    """Stands in for `_Now` while torch.compile traces a block; what was traced neither reads nor writes it."""

    block: _BlockCall | None = None


_NOW, _TRACED = _Now(), _Traced()


@dataclass(eq=False)
class History:
    """State that the attached modules of one transformer share: the mask, and the layout of the current call.

    Each thread has a layout of its own, so that several threads can draw with one transformer.
    """

    mask: str = "M4"
    text: str = ""  # where text keys stand in joint attention: first, last or nowhere

    def current(self) -> Layout:
        """The layout of the current call.

        Raises:
            HistoryError: There is none.
        """
        layout = _NOW.layouts.get(self)
        if layout is None:
            raise HistoryError(
                "a student's transformer was called directly or by another pipeline; call the Student or the exported "
                "pipeline"
            )
        return layout

    @contextlib.contextmanager
    def use_layout(self, layout: Layout | None) -> Iterator[None]:
        """Use this layout for every call of this thread while the context lasts."""
        before, _NOW.layouts = _NOW.layouts, _NOW.layouts | {self: layout}
        try:
            yield
        finally:
            _NOW.layouts, _NOW.block = before, None  # an error may have left a block's call behind


@dataclass(eq=False)
class _BlockCall:
    """The attention calls of one call of a block: what they are given, and the keys and values that they leave."""

    history: History
    layout: Layout
    modules: list[Any]
    """The attention modules; each is asked for its gate while it runs, as offloading brings weights only then."""
    earlier: list[list[tuple[Tensor, Tensor]]]
    """For each attention call, keys and values of the earlier steps that are seen; none where steps are folded."""
    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """The keys and values of the image's tokens, one pair for each attention call that the block has made so far; of
    linear attention the sums over tokens, of values times keys and of keys."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stand in for ``scaled_dot_product_attention`` in a layer with history.

    Raises:
        ValueError: The attention is causal.
        HistoryError: The block attends more often than it should.
    """
    call = (_TRACED if torch.compiler.is_compiling() else _NOW).block
    if is_causal:
        raise ValueError("causal attention cannot have a history; set history_layers to 0, or change the teacher")
    if call is None or len(call.made) == len(call.modules):
        raise bypassed("another")
    index, layout = len(call.made), call.layout
    gate, image = call.modules[index].history_gate, _image(layout, call.history.text, key.shape[2])
    options: dict[str, Any] = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
    call.made.append((of_image(key, image), of_image(value, image)))
    if layout.folded is not None:
        return layout.folded(query, key, value, call.history.mask, image, attn_mask, gate, **options)
    earlier = call.earlier[index]
    if gate is not None and earlier:
        keys, values = (x[0] if len(x) == 1 else torch.cat(x, dim=2) for x in zip(*earlier, strict=True))
        own = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)
        return torch.addcmul(own, gate.to(own), F.scaled_dot_product_attention(query, keys, values, **options))
    if earlier:
        key, value = (torch.cat(x, dim=2) for x in zip(*earlier, (key, value), strict=True))
        attn_mask = None if attn_mask is None else extend_mask(attn_mask, key.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)


def _image(layout: Layout, text: str, tokens: int) -> slice | Tensor:
    """Which of ``tokens`` tokens are the image's."""
    count, start = layout.image_tokens, layout.image_start
    if text and count is None:
        raise HistoryError("transformer.forward(...) skips the student's hooks; call transformer(...)")
    if count is None or count == tokens:
        return slice(None)
    if start is not None:
        return start[:, None] + torch.arange(count, device=start.device)
    return slice(-count, None) if text == "first" else slice(count)


@functools.cache
def _compiled(run: Any, options: Any) -> Any:
    """A compiled `_HistoryBlock.history_run`; all blocks share it, and with it the graphs of their classes."""
    return torch.compile(run, **{k: dict(v) if isinstance(v, tuple) else v for k, v in options})  # type: ignore


class _Bound(MixedIn):
    """Mixed into the class of an attention module or its processor, whose attention call is bound to the history."""

    def __new__(cls, *args: Any, **options: Any) -> Any:  # a new one, as of type(processor)(), is plain
        return cls.__bases__[1](*args, **options)

    @classmethod
    def members(cls, base: Any) -> dict[str, Any]:
        name = "forward" if issubclass(base, nn.Module) else "__call__"
        return {name: rebind(getattr(base, name), attend)}


def _bind(module: Any) -> None:
    """Bind the attention call of a module, or that of its processor, unless it is bound."""
    processor = getattr(module, "processor", None)
    if not hasattr(module if processor is None else processor, "mix_into"):  # by name: an export may be loaded again
        if processor is not None:
            module.processor = module = copy.copy(processor)  # other modules may share it
        _Bound.mix_into(module)


class _HistoryBlock(MixedIn):
    """Mixed into the class of a block: its own forward, with the history of the current call."""

    history_compile: tuple[tuple[str, Any], ...] | None = None

    def compile(self, **options: Any) -> None:
        """Compile what the block computes; the history comes to it as data, so that one graph serves all layers."""
        self.history_compile = tuple((k, (*v.items(),) if isinstance(v, dict) else v) for k, v in options.items())

    def history_run(self: Any, layout: Layout, earlier: Any, args: Any, kwargs: Any) -> tuple[Any, list[Any]]:
        """Run the block's own forward; returns its output, and keys and values of each of its attention calls."""
        now = _TRACED if torch.compiler.is_compiling() else _NOW
        now.block = call = _BlockCall(self.history, layout, [*map(self.get_submodule, self.history_attention)], earlier)
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        now.block = None
        if len(call.made) != len(call.modules):
            raise bypassed("none")
        return output, call.made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        block: Any = self
        layout, run = block.history.current(), type(block).history_run  # by its class: this module may be run again
        run = run if block.history_compile is None else _compiled(run, block.history_compile)
        for name in block.history_attention:
            _bind(block.get_submodule(name))  # the user may have set another processor
        if layout.cache is None:
            return run(block, layout, [], args, kwargs)[0]
        every = [layout.cache.setdefault(layer, []) for layer in block.history_layers]
        check_cached(every, layout.step)
        seen, later = (MASKS[block.history.mask](step)[:-1] for step in (layout.step, layout.step + 1))
        output, made = run(block, layout, [[past[i] for i in seen] for past in every], args, kwargs)
        for past, pair in zip(every, made, strict=True):  # what no later step sees is let go
            past[:] = [*(x if i in later else () for i, x in enumerate(past)), pair]
        return output


def attach_history(blocks: Iterable[tuple[nn.Module, Sequence[str]]], mask: str, text: str, gated: bool) -> History:
    """Let the attention of these blocks, lowest first, see earlier steps. Weights and their names stay as they are.

    Args:
        blocks: Each block with the names of its modules of self-attention, or joint attention over image and text, in
            the order in which they run.
        mask: A key of ``MASKS``.
        text: Where text keys stand in joint attention: ``first``, ``last``, or nowhere.
        gated: Whether each attention module gets a gate, its parameter ``history_gate``; else one softmax covers all
            keys.

    Raises:
        ValueError: A block has a history already, or its attention cannot be bound.
    """
    history, layers = History(mask, text), 0
    for block, names in blocks:
        if hasattr(block, "history"):
            raise ValueError("this transformer has a history already; load a fresh copy of the teacher")
        vars(block).update(history=history, history_attention=tuple(names))
        vars(block)["history_layers"] = tuple(range(layers, layers := layers + len(names)))
        _HistoryBlock.mix_into(block)
        for module in (block.get_submodule(name) for name in names):
            _bind(module)
            gate = nn.Parameter(torch.zeros(1, **placement(module))) if gated else None
            module.register_parameter("history_gate", gate)
    return history
