"""Which teacher a recording, a student or a folder belongs to, and the check that two of them agree."""

from __future__ import annotations

from typing import Any, NamedTuple


class Identity(NamedTuple):
    """A teacher, identified by the fingerprint of its weights; the name is for messages only."""

    name: str
    """Name given to ``Teacher.from_pretrained``; empty if unknown."""
    fingerprint: str
    """SHA-256 of the weights; empty if unknown."""

    @classmethod
    def of(cls, owner: Any) -> Identity:
        """The identity of a teacher, or of the teacher that a manifest or a student's configuration names."""
        if isinstance(owner, Identity):
            return owner
        if callable(owner.fingerprint):
            return cls(owner.name, owner.fingerprint())
        return cls(owner.teacher, owner.fingerprint)

    def __str__(self) -> str:
        return f"{self.name or 'an unnamed teacher'} ({self.fingerprint[:12]})"


def check_same_teacher(what: str, expected: Any, found: Any, remedy: str) -> None:
    """Refuse to combine things that belong to two different teachers. An unknown fingerprint agrees with any.

    Args:
        what: The subject of the message, such as "the student in runs/a".
        expected: What it belongs to: a teacher, a manifest, a student's configuration or an `Identity`.
        found: What it is to be used with, of the same kinds. A teacher's weights are read only if the fingerprint that
            is expected is known.
        remedy: What to do, for the message.

    Raises:
        ValueError: Their weights differ.
    """
    ours = Identity.of(expected)
    if not ours.fingerprint:
        return
    theirs = Identity.of(found)
    if theirs.fingerprint and ours.fingerprint != theirs.fingerprint:
        raise ValueError(f"{what}: expected the teacher {ours}, got another teacher, {theirs}; {remedy}")
