"""AutoRegressive Distillation of diffusion transformers (Kim et al. 2025, arXiv:2504.11295)."""

from ardistill.export import export
from ardistill.quickstart import QuickstartConfig, quickstart
from ardistill.sampling import sample
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher
from ardistill.training import TrainingConfig, train
from ardistill.trajectories import TrajectoryDataset, record

__all__ = [
    "QuickstartConfig",
    "Student",
    "StudentConfig",
    "Teacher",
    "TrainingConfig",
    "TrajectoryDataset",
    "export",
    "quickstart",
    "record",
    "sample",
    "train",
]
