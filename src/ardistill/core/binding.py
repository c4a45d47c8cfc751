"""Send the attention call of existing code elsewhere: a function of the same code, with one name bound differently.

Nothing global is changed, and no other call is slower; torch.compile traces the function as it traces the original.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ardistill.core.architecture import ARCHITECTURES


class HistoryError(ValueError, RuntimeError):
    """A transformer with history was called in a way that its history cannot follow."""


def bypassed(found: str) -> HistoryError:
    """The error for attention that does not make its one call."""
    return HistoryError(
        f"expected one call of scaled_dot_product_attention in each attention module with history, saw {found}; "
        "set the native attention backend, transformer.set_attention_backend('native'), and the model's own attention "
        "processors in the layers with history, and disable caches that skip attention (transformer.disable_cache())"
    )


def rebind(function: Any, attention: Callable[..., Any]) -> Any:
    """A function of the same code, whose ``scaled_dot_product_attention`` is ``attention``.

    Its globals lack their module's name, by which dynamo would take it for another function of that module.

    Args:
        function: The forward of an attention module, or the call of a diffusers attention processor. It has to name
            ``torch.nn.functional.scaled_dot_product_attention`` or diffusers' ``dispatch_attention_fn`` itself, or to
            be the linear attention of a known architecture (``Architecture.linear``).
        attention: Takes the arguments of ``scaled_dot_product_attention``; not used where the architecture has its own
            (``Architecture.by_row``).

    Raises:
        HistoryError: The function names neither.
    """

    def dispatched(query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:  # each (b, t, h, d)
        if options.pop("parallel_config", None) is not None or options.pop("backend", None) not in (None, "native"):
            raise bypassed("another backend")
        return attention(*(x.transpose(1, 2) for x in (query, key, value)), *args, **options).transpose(1, 2)

    attention = dict(x.by_row for x in ARCHITECTURES.values()).get(function.__qualname__, attention)
    multiply = dict(x.linear for x in ARCHITECTURES.values()).get(function.__qualname__)
    if not multiply and not {"dispatch_attention_fn", "scaled_dot_product_attention"} & {*function.__code__.co_names}:
        raise bypassed(f"none in {function.__qualname__}")
    bound: dict[int, Any] = {id(F.scaled_dot_product_attention): attention, id(torch.matmul): multiply}
    path = (F, "scaled_dot_product_attention"), (nn, "functional"), (torch, "nn")  # torch only where the code needs it
    for module, name in ((torch, "matmul"),) if multiply else path[: 2 + ("functional" in function.__code__.co_names)]:
        bound[id(module)] = SimpleNamespace(**vars(module) | {name: bound[id(getattr(module, name))]})
    world = {name: bound.get(id(x), x) for name, x in function.__globals__.items() if name != "__name__"}
    world["dispatch_attention_fn"] = dispatched
    made = FunctionType(function.__code__, world, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made
