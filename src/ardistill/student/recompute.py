"""Gradient checkpointing of every family: a block's activations are recomputed in the backward pass instead of kept.

It wraps the call of a block, so that a transformer's class needs no support of its own, and a block may be called with
keyword arguments.

Source: Chen et al. 2016, arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ardistill.core.history import History, Layout
from ardistill.core.mixing import MixedIn


class _Recomputed(MixedIn):
    """Mixed into the class of a block: its call keeps only what it is given, and runs again in the backward pass."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call: Any = super().__call__  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return call(*args, **kwargs)
        history, names, times_run = self.recompute_history, [*kwargs], 0
        layout, past = history.current(), _cached(history.current(), getattr(self, "history_layers", ()))
        keys = [tensor for _, pairs in past for pair in pairs for tensor in pair]

        def run(*given: Any) -> Any:
            """Run the block; after the first time, with the cache of earlier steps as it was then."""
            nonlocal times_run
            own, kept = given[: len(given) - len(keys)], iter(given[len(given) - len(keys) :])
            used = layout
            if times_run and layout.cache is not None:
                used = replace(layout, cache={n: [tuple(next(kept) for _ in x) for x in pairs] for n, pairs in past})
            times_run += 1
            with history.use_layout(used):
                return call(*own[: len(args)], **dict(zip(names, own[len(args) :], strict=True)))

        # By position, as torch hands only such tensors to the hooks that move what is saved to the host.
        return checkpoint(run, *args, *kwargs.values(), *keys, use_reentrant=False)


def _cached(layout: Layout, layers: Iterable[int]) -> list[tuple[int, list[tuple[Tensor, ...]]]]:
    """What the cache of a call holds of these layers now: (layer, keys and values of each earlier step)."""
    return [(layer, [*(layout.cache or {}).get(layer, [])]) for layer in layers]


def recompute_blocks(transformer: Any, block_lists: Iterable[str], history: History, stride: int) -> None:
    """Recompute every ``stride``-th block of a transformer in the backward pass, under the history that it ran with.

    Args:
        transformer: The transformer, which is changed in place, before its weights are divided over processes. Lists of
            blocks before its main ones (refiners) are recomputed, too.
        block_lists: Attributes of the transformer that hold its main blocks.
        history: The history of the student that the transformer belongs to.
        stride: 1 recomputes every block, 2 every second one, starting with the first.
    """
    lists = [getattr(transformer, name) for name in block_lists]
    lists += [child for child in transformer.children() if isinstance(child, nn.ModuleList) and child not in lists]
    for block in [block for blocks in lists for block in blocks][::stride]:
        if not isinstance(block, _Recomputed):
            vars(block)["recompute_history"] = history
            _Recomputed.mix_into(block)
