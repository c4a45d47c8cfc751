"""Which teacher a recording, a student or a folder belongs to, and the one check that two of them agree."""

from __future__ import annotations

from typing import Any, NamedTuple


class Identity(NamedTuple):
    """A teacher by the fingerprint of its weights; its name is for people."""

    name: str
    """As given to ``Teacher.from_pretrained``; empty if it is not known."""
    fingerprint: str
    """SHA-256 of the weights; empty if it is not known."""

    @classmethod
    def of(cls, owner: Any) -> Identity:
        """The teacher itself, or the one that a manifest or a student's configuration names."""
        if callable(owner.fingerprint):
            return cls(owner.name, owner.fingerprint())
        return cls(owner.teacher, owner.fingerprint)

    def __str__(self) -> str:
        return f"{self.name or 'an unnamed teacher'} ({self.fingerprint[:12]})"


def check_same_teacher(what: str, expected: Identity, found: Identity, remedy: str) -> None:
    """Refuse to combine what belongs to two different teachers; an unknown fingerprint agrees with any.

    Args:
        what: What is checked, as the subject of the message, such as "the student in runs/a".
        expected: The teacher that it belongs to.
        found: The teacher that it is to be used with.
        remedy: What to do.

    Raises:
        ValueError: Their weights differ.
    """
    if expected.fingerprint and found.fingerprint and expected.fingerprint != found.fingerprint:
        raise ValueError(f"{what}: expected the teacher {expected}, got another teacher, {found}; {remedy}")
