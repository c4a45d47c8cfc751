"""The teacher: a frozen diffusion transformer, its guidance and the ODE that it defines."""

from ardistill.teacher.recorded import load_recorded_teacher as load_recorded_teacher
from ardistill.teacher.teacher import Teacher as Teacher
from ardistill.teacher.teacher import Trajectory as Trajectory

__all__ = ["Teacher", "Trajectory", "load_recorded_teacher"]
