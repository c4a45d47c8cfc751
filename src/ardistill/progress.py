"""Progress bars of all commands: drawn on a terminal, one line of text every half minute in a log file; a stopwatch."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from ardistill.errors import heed_signals

SECONDS = 30
"""Minimum time between two lines in a log file."""


class _Bar(tqdm):
    """A bar at whose steps a command ends that a signal asked to end."""

    def __iter__(self) -> Iterator[Any]:
        for step in super().__iter__():
            heed_signals()
            yield step

    def update(self, n: float | None = 1) -> bool | None:
        heed_signals()
        return super().update(n)


class _Lines(_Bar):
    """A bar for a log file: it prints whole lines, the last one when it is closed."""

    disable: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"mininterval": SECONDS, "miniters": 1, "ascii": True, "ncols": 100, **options})

    def set_postfix(self, *args: Any, refresh: bool = True, **options: Any) -> None:
        super().set_postfix(*args, refresh=False, **options)

    @staticmethod
    def status_printer(file: Any) -> Any:
        def write(line: str) -> None:
            if line.strip():
                file.write(f"{line.strip()}\n")
                file.flush()

        return write

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
            if self.last_print_n < self.n or self.postfix:  # otherwise the previous line says the same
                self.sp(str(self))


class Stopwatch:
    """Measures how long the parts of some work take, one after the other."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last call, or since the stopwatch was made."""
        began, self._began = self._began, time.monotonic()
        return self._began - began


def bar(steps: Iterable[Any] | None = None, **options: Any) -> Any:
    """A progress bar on stderr with tqdm's arguments and methods; ``disable=True`` shows none."""
    return (_Bar if sys.stderr.isatty() else _Lines)(steps, **options)


def tell_compiled(began: float, what: str) -> None:
    """Print how long the first pass took, in which torch.compile made the blocks' graphs.

    Args:
        began: ``time.time()`` at its beginning.
        what: What the pass was, such as a step.
    """
    tqdm.write(f"the first {what} took {time.time() - began:.0f} s: the blocks were compiled", file=sys.stderr)


def calm_libraries() -> None:
    """Make the progress bars of other packages follow the same rule if stderr is not a terminal, and leave out what
    torchao says of its kernels when diffusers imports it, whether it is used or not.

    Must be called before tqdm is imported, which reads its defaults from the environment at import.
    """
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(SECONDS))
        os.environ.setdefault("TQDM_MAXINTERVAL", str(2 * SECONDS))
