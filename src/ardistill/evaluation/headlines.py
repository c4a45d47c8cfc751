"""The numbers that a report opens with: a student's speed, the quality that it gives up, and what history adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ardistill.evaluation.metrics import BootstrapInterval
from ardistill.evaluation.tables import arm_label

Figures = dict[str, float | int | None]
"""Metrics of one arm by name; the names are those of `tables.COLUMNS`."""


class Headline(NamedTuple):
    """A number with what it means."""

    figure: str
    """The number, as text."""
    name: str
    """What it is, in a few words."""
    sentence: str
    """One sentence that says what it is made of."""

    def __str__(self) -> str:
        """One line for the terminal."""
        return f"{self.figure} {self.name}: {self.sentence}"


def speed(arms: Mapping[str, Figures], student: str) -> Headline | None:
    """How many times as fast as its teacher a student is, by time, or by evaluations where time was not measured.

    Args:
        arms: Arm -> its metrics.
        student: The student's arm.

    Returns:
        None if neither was measured of both.
    """
    label = arm_label(student)
    own, teachers = _both(arms, student, "nfe")
    if own is None or teachers is None:
        return None
    evaluations = f"{own:g} evaluation{'s' * (own != 1)} of the network instead of {teachers:g}"
    own_ms, teachers_ms = _both(arms, student, "ms_per_image")
    if own_ms is None or teachers_ms is None:
        return Headline(
            f"{_ratio(teachers / own)}×",
            "fewer evaluations than the teacher",
            f"{label} draws an image in {evaluations}; time was not measured.",
        )
    return Headline(
        f"{_ratio(teachers_ms / own_ms)}×",
        "as fast as the teacher",
        f"{label} draws {_rate(own_ms)} images per second and the teacher {_rate(teachers_ms)}, in batches on one "
        f"machine; an image takes {evaluations}.",
    )


def quality(arms: Mapping[str, Figures], student: str, floor: float | None) -> Headline | None:
    """The Fréchet distance that a student gives up against its teacher, or its distance to the teacher's images.

    Args:
        arms: Arm -> its metrics.
        student: The student's arm.
        floor: FD of as many real images; None if it is not known.

    Returns:
        None if neither was measured.
    """
    label = arm_label(student)
    own, teachers = _both(arms, student, "fd")
    if own is not None and teachers is not None:
        real = "" if floor is None else f", as many held-out real ones at {floor:.3f}"
        return Headline(
            f"{abs(own - teachers):.3f}",
            "FD given up" if own >= teachers else "FD gained on the teacher",
            f"{label}'s images are at FD {own:.3f} to the data and the teacher's at {teachers:.3f}{real}; lower is "
            "better.",
        )
    to_teacher = _known(arms.get(student, {}).get("fd_to_teacher"))
    if to_teacher is None:
        return None
    return Headline(
        f"{to_teacher:.3f}",
        "FD to the teacher",
        f"{label}'s images are at this FD to the teacher's from the same noise, where 0 is the teacher itself; what is "
        "given up against real images is not known without a reference.",
    )


def history(arms: Mapping[str, Figures], student: str, baseline: str, interval: BootstrapInterval) -> Headline:
    """Where a student with history stands against the same student without.

    Args:
        arms: Arm -> its metrics.
        student: The student with history.
        baseline: The student without.
        interval: The student's paired distance to the teacher minus the baseline's.
    """
    base = _known(arms[baseline].get("feature_distance_to_teacher"))
    share = f" ({interval.difference / base:+.1%} of {arm_label(baseline)}'s {base:.3f})" if base else ""
    return Headline(
        f"{interval.difference:+.4f}",
        "distance to the teacher by history",
        f"{arm_label(student)} is {verdict(interval)} {arm_label(baseline)}, which takes the same steps without "
        f"history: the difference of their distances to the teacher, image by image{share}, has the 95 % interval "
        f"{interval.low:+.4f} to {interval.high:+.4f}; below zero, history is nearer to the teacher.",
    )


def verdict(interval: BootstrapInterval) -> str:
    """What the interval of a difference of distances says: ``ahead of``, ``behind`` or ``not distinguishable from``."""
    return "ahead of" if interval.high < 0 else "behind" if interval.low > 0 else "not distinguishable from"


def _both(arms: Mapping[str, Figures], student: str, key: str) -> tuple[float | None, float | None]:
    """A metric of the student and of the teacher."""
    return _known(arms.get(student, {}).get(key)), _known(arms.get("teacher", {}).get(key))


def _known(value: float | None) -> float | None:
    """The value, None if it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def _ratio(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _rate(milliseconds: float) -> str:
    """Images per second with three digits or so."""
    rate = 1000 / milliseconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
