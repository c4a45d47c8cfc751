"""The student: the teacher's transformer, extended to attend to the earlier steps of its own trajectory."""

from ardistill.student.student import Student as Student
from ardistill.student.student import StudentConfig as StudentConfig

__all__ = ["Student", "StudentConfig"]
