"""Load the teacher that a recording was made with or that a student was distilled from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ardistill.devices import Device
from ardistill.teacher.identity import check_same_teacher
from ardistill.teacher.teacher import Teacher


class TeacherFacts(Protocol):
    """What a recording's manifest and a student's configuration both say about their teacher."""

    @property
    def teacher(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def guidance_range(self) -> tuple[float, float]: ...

    @property
    def sample_shapes(self) -> tuple[tuple[int, ...], ...]: ...


def load_recorded_teacher(
    facts: TeacherFacts,
    name: str | Path | None = None,
    device: Device = None,
    weights: str = "auto",
    in_parts: bool = False,
) -> Teacher:
    """Load the teacher that a manifest or a student's configuration names, and check its weights.

    Args:
        facts: A recording's manifest, or a student's configuration.
        name: Where the teacher is now; the recorded name if not given.
        device: Device of the teacher; the best available if not given.
        weights: Type of its weights, as for ``Teacher.from_pretrained``.
        in_parts: As for ``Teacher.from_pretrained``.

    Raises:
        ValueError: No name is known, nothing is found there, or its weights are not the recorded ones.
    """
    name = str(name or facts.teacher)
    if not name:
        raise ValueError("it is not known where the teacher is: say so with --teacher")
    teacher = Teacher.from_pretrained(
        name,
        device=device,
        weights=weights,
        guidance_scale=sum(facts.guidance_range) / 2,
        guidance_channels=getattr(facts, "guidance_channels", None),  # only a manifest has these two
        negative_prompt=getattr(facts, "negative_prompt", ""),
        latent_shape=facts.sample_shapes[0] if facts.sample_shapes else None,
        in_parts=in_parts,
    )
    check_same_teacher(name, facts, teacher, "name the right one with --teacher")
    teacher.name = facts.teacher or name
    return teacher
