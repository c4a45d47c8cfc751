"""The bars of all commands: drawn on a terminal, and a line of text every half minute in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 30
"""Least time between two lines in a log file."""


class _Lines(tqdm):
    """A bar for what is no terminal: lines of its own, the last one when it is closed."""

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
            if self.last_print_n < self.n or self.postfix:  # else the line before says as much
                self.sp(str(self))


def bar(steps: Iterable[Any] | None = None, **options: Any) -> Any:
    """A progress bar on stderr, with tqdm's arguments and methods; ``disable`` leaves it out."""
    return (tqdm if sys.stderr.isatty() else _Lines)(steps, **options)


def calm_libraries() -> None:
    """Let the bars of other packages follow the same rule, where there is no terminal. Called before they are imported.

    tqdm reads its defaults from the environment when it is imported.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(SECONDS))
        os.environ.setdefault("TQDM_MAXINTERVAL", str(2 * SECONDS))
