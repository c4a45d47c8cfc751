"""Load the teacher again that a recording was made with or that a student was distilled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ardistill.devices import Device
from ardistill.teacher.teacher import Teacher


class TeacherFacts(Protocol):
    """What a recording's manifest and a student's configuration both say of their teacher."""

    @property
    def teacher(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def guidance_range(self) -> tuple[float, float]: ...

    @property
    def sample_shapes(self) -> tuple[tuple[int, ...], ...]: ...


def load_recorded_teacher(facts: TeacherFacts, name: str | Path | None = None, device: Device = None) -> Teacher:
    """The teacher that a manifest or a student's configuration names, its weights checked.

    Args:
        facts: A recording's manifest, or a student's configuration.
        name: Where the teacher is now; the name it was recorded under if not given.
        device: Where the teacher is put; the best device there is if not given.

    Raises:
        ValueError: No name is known, nothing is found there, or it is another teacher.
    """
    name = str(name or facts.teacher)
    if not name:
        raise ValueError("it is not known where the teacher is: say so with --teacher")
    options: dict[str, Any] = {
        "guidance_channels": getattr(facts, "guidance_channels", None),
        "negative_prompt": getattr(facts, "negative_prompt", ""),
        "latent_shape": facts.sample_shapes[0] if facts.sample_shapes else None,
    }
    teacher = Teacher.from_pretrained(name, guidance_scale=sum(facts.guidance_range) / 2, device=device, **options)
    teacher.name = facts.teacher or name
    if facts.fingerprint and teacher.fingerprint() != facts.fingerprint:
        raise ValueError(
            f"{name} is another teacher ({teacher.fingerprint()[:12]}) than the one that was recorded, {facts.teacher} "
            f"({facts.fingerprint[:12]}); name the right one with --teacher"
        )
    return teacher
