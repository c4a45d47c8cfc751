"""A cache of what was opened last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
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
        self._found: OrderedDict[int, T | Future[T]] = OrderedDict()

    def __call__(self, key: int) -> T:
        """The result for a key: kept, begun or loaded now. What `begin` raised is raised here, and forgotten."""
        found = self._found.pop(key, None)
        result = self.load(key) if found is None else found.result() if isinstance(found, Future) else found
        self._put(key, result)
        return result

    def begin(self, key: int) -> None:
        """Begin to load a key, unless it is there, in a thread that does not hold up the end of the process."""
        with suppress(KeyError):
            self._found.move_to_end(key)
            return
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(self.load(key))
            except BaseException as error:
                future.set_exception(error)

        self._put(key, future)
        Thread(target=work, name="reading ahead", daemon=True).start()

    def _put(self, key: int, found: T | Future[T]) -> None:
        self._found[key] = found
        while len(self._found) > self.keep:
            with suppress(KeyError):
                self._found.popitem(last=False)

    def __len__(self) -> int:
        return len(self._found)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_found": OrderedDict()}
