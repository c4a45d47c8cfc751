"""The student: the teacher's transformer, extended to attend to the earlier steps of its own trajectory."""

from ardistill.core.config import StudentConfig as StudentConfig
from ardistill.student.lora import check_trainable as check_trainable
from ardistill.student.sample import sample as sample
from ardistill.student.student import Student as Student
from ardistill.student.student import StudentPair as StudentPair
from ardistill.student.student import check_whole as check_whole

__all__ = ["Student", "StudentConfig", "StudentPair", "check_trainable", "check_whole", "sample"]
