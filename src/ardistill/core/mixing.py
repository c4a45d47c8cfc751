"""Change the class of an existing object, so that weights and their names stay as they are."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


@functools.cache
def _mixed(mixin: Any, base: Any) -> type:
    return type(base.__name__, (mixin, base), mixin.members(base))


def _blank(mixin: type, base: type) -> Any:
    return object.__new__(_mixed(mixin, base))


class MixedIn:
    """Base of classes that are mixed into the class of an existing object, which still pickles and copies.

    The new class has the name of the old one, by which diffusers and accelerate know the blocks of a transformer.
    """

    @classmethod
    def members(cls, base: Any) -> dict[str, Any]:
        """Members of the new class that depend on the old one, ``base``."""
        return {}

    @classmethod
    def mix_into(cls, module: Any) -> None:
        """Change the object's class in place.

        Raises:
            ValueError: Something else has replaced the module's forward already.
        """
        hooked = vars(module).get("_old_forward")  # accelerate's hooks run this one
        if "forward" in vars(module) and hooked is None:
            raise ValueError(
                "expected a transformer without hooks, found some (offloading or caching); load a fresh one, make the "
                "student or pipeline of it, and enable them there"
            )
        both: Any = (cls, type(module))
        module.__class__ = _mixed(*both)
        if hooked is not None:
            module._old_forward = type(module).forward.__get__(module)  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made where it is needed, so pickle cannot find it by name."""
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        return _blank, type(self).__bases__, *reduced[2:]


def placement(module: nn.Module) -> dict[str, Any]:
    """Device and dtype for weights that are added to a module; dtype None where it has no floating-point weights."""
    weights = [*module.parameters()]
    floating = [weight.dtype for weight in weights if weight.is_floating_point()]
    return {"device": weights[0].device if weights else None, "dtype": floating[0] if floating else None}
