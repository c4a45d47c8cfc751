"""The students that a page offers: loaded by name, each with its teacher, and drawn with one at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ardistill.demo.drawing import Drawing, draw
from ardistill.devices import Device, resolve_device, resolve_precision
from ardistill.student import Student, check_whole
from ardistill.student.files import find_student, locate_student
from ardistill.teacher import Teacher, load_recorded_teacher

EMBEDDED = "zoo/fashion-student"
"""The student that a page offers where none is given."""
KEPT = 2
"""Students that stay loaded."""
_REMEDY = "name a run, a checkpoint, an export or its Hub id"


@dataclass(frozen=True)
class Pair:
    """A student with its teacher."""

    student: Student
    teacher: Teacher

    @property
    def class_names(self) -> list[str]:
        """Names of the teacher's classes, or their numbers where it has no names; empty for a text-to-image teacher."""
        if self.teacher.takes_text:
            return []
        names = self.teacher.companions.get("id2label") or {}
        return [str(names.get(str(i), i)).partition(",")[0] for i in range(self.teacher.num_classes)]


class Studio:
    """Draws with students by their names, for several users at once, who wait for each other.

    Args:
        students: Runs, checkpoints, exports or Hub ids.
        teacher: Where the students' teacher is now; what each student recorded if not given.
        others: Whether other students than these may be asked for.
        device: Where to draw; the best device there is if not given.
        mixed_precision: What to compute in, as for ``ardistill.student.sample``.

    Raises:
        ValueError: There is no student, or one of them is not found or damaged.
    """

    def __init__(
        self,
        students: Sequence[str],
        *,
        teacher: str | None = None,
        others: bool = False,
        device: Device = None,
        mixed_precision: str = "auto",
    ) -> None:
        if not students:
            raise ValueError(f"expected one student or more, got none; {_REMEDY}")
        self.names = [*dict.fromkeys(students)]
        self.others = others
        self._teacher, self._device, self._precision = teacher, resolve_device(device), mixed_precision
        resolve_precision(mixed_precision, self._device)
        for name in self.names:
            find_student(locate_student(name))
        self._lock = threading.RLock()
        self._kept = functools.lru_cache(maxsize=KEPT)(self._load)

    def load(self, name: str) -> Pair:
        """A student and its teacher, ready to draw at full speed.

        Args:
            name: One of ``names``, or any other where others may be asked for.

        Raises:
            ValueError: It is not found, damaged or not offered, or its teacher is missing or draws no images.
        """
        name = name.strip()
        if name not in self.names and not self.others:
            raise ValueError(f"expected one of the students {', '.join(self.names)}, got {name!r}; choose one of them")
        if not name:
            raise ValueError(f"expected a student, got an empty name; {_REMEDY}")
        with self._lock:
            return self._kept(name)

    def draw(self, name: str, **request: Any) -> Drawing:
        """Draw with a student and its teacher.

        Args:
            name: As for ``load``.
            request: Options of `draw`, except for the precision.
        """
        with self._lock:
            pair = self.load(name)
            return draw(pair.student, pair.teacher, mixed_precision=self._precision, **request)

    def _load(self, name: str) -> Pair:
        student = Student.from_pretrained(name, self._device)
        check_whole(student.config, name)
        teacher = load_recorded_teacher(student.config, self._teacher, self._device)
        # The first passes of a network are slower than later ones; the times on the page are of later ones.
        draw(student, teacher, prompt="an image", teacher_steps=1, mixed_precision=self._precision)
        return Pair(student, teacher)
