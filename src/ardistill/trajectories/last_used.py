"""A cache of what was opened last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LastUsed(Generic[T]):
    """The results of a function for the keys that were used last.

    Threads may share it: each single operation is atomic, so that two threads may load one key twice but never lose an
    entry. A pickled copy is empty, so that each worker process opens and checks its files itself.

    Args:
        load: The function, of a whole number.
        keep: Number of results to keep.
    """

    def __init__(self, load: Callable[[int], T], keep: int) -> None:
        self.load = load
        self.keep = keep
        self._found: OrderedDict[int, T] = OrderedDict()

    def __call__(self, key: int) -> T:
        found = self._found.pop(key, None)
        if found is None:
            found = self.load(key)
        self._found[key] = found
        while len(self._found) > self.keep:
            with suppress(KeyError):
                self._found.popitem(last=False)
        return found

    def __len__(self) -> int:
        return len(self._found)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_found": OrderedDict()}
