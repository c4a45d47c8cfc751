"""Training a student: regression onto the teacher's trajectories, then, if asked, a discriminator."""

from ardistill.training.distill import TrainingDivergedError as TrainingDivergedError
from ardistill.training.distill import distill as distill
from ardistill.training.distill import environment as environment

__all__ = ["TrainingDivergedError", "distill", "environment"]
