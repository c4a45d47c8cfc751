"""A table-driven check of refusals: bad input ends with status 2 and one line that names the fault and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ardistill.cli import main
from ardistill.errors import explain


@dataclass(frozen=True)
class Refusal:
    """One row of a table."""

    act: str | list[str] | Callable[..., Any]
    """Words of a command line, or a call in Python."""
    said: str
    """Regular expression for what was wrong: what was expected, what came."""
    remedy: str
    """Regular expression for what to do about it."""


def check_refusal(row: Refusal, capsys: pytest.CaptureFixture[str], *arguments: Any) -> None:
    """See that ``row.act`` is refused with exit status 2 in one line that says what was wrong and what to do.

    Args:
        row: A command line is run by ``main``; a function is called with ``arguments``.
        capsys: pytest's fixture; read here.
        arguments: Of the function.
    """
    if callable(row.act):
        with pytest.raises(Exception) as raised:
            row.act(*arguments)
        status, line = explain(raised.value)
        lines = [line]
    else:
        capsys.readouterr()
        words = row.act.split() if isinstance(row.act, str) else row.act
        with pytest.raises(SystemExit) as exit:
            main(words)
        status, lines = exit.value.code, capsys.readouterr().err.splitlines()
        lines = lines[-1:]  # lines before it may say how far the work came
    assert status == 2, lines
    assert len(lines) == 1 and "\n" not in lines[0] and len(lines[0]) < 1000, lines
    for pattern in (row.said, row.remedy):
        assert re.search(pattern, lines[0]), lines[0]
