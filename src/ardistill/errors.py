"""The one place that turns an exception into what a person reads: one line with the remedy, and an exit status."""

from __future__ import annotations

USAGE = 2
"""Exit status of what a user, a disk, a network or a missing extra caused."""


def explain(error: BaseException) -> tuple[int, str]:
    """Exit status and one line for an exception."""
    return USAGE, " ".join(str(error).split())
