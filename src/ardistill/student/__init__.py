"""The student: the teacher's transformer, extended to attend to the earlier steps of its own trajectory."""

from ardistill.core.config import StudentConfig as StudentConfig
from ardistill.student.lora import check_trainable as check_trainable
from ardistill.student.sample import sample as sample
from ardistill.student.student import Student as Student

__all__ = ["Student", "StudentConfig", "check_trainable", "sample"]
