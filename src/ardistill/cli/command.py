"""What a command is: a function with groups of options as parameters and a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Result:
    """What a command found."""

    facts: dict[str, Any]
    """Printed with ``--json``."""
    text: str
    """Printed without ``--json``."""
    exit_status: int = 0
    """Exit status of the process."""


Command = Callable[..., Result]
"""A function whose parameters are groups of options: each is annotated with a frozen dataclass.

The fields of these dataclasses are the command's options, and the fields' docstrings are their help. The function's
docstring is the help of the command; its first line is the summary.
"""


def option_groups(command: Command) -> dict[str, type]:
    """The dataclass of each parameter of a command, by the parameter's name."""
    groups = get_type_hints(command)
    del groups["return"]
    return groups
