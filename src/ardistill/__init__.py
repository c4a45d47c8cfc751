"""AutoRegressive Distillation of diffusion transformers (Kim et al. 2025, arXiv:2504.11295)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str

    from ardistill.config import QuickstartConfig as QuickstartConfig
    from ardistill.config import TrainingConfig as TrainingConfig
    from ardistill.evaluation import compare as compare
    from ardistill.families import Family as Family
    from ardistill.families import register_family as register_family
    from ardistill.publishing import load as load
    from ardistill.publishing.export import export as export
    from ardistill.student import Student as Student
    from ardistill.student import StudentConfig as StudentConfig
    from ardistill.student import sample as sample
    from ardistill.studies.quickstart import quickstart as quickstart
    from ardistill.teacher import Teacher as Teacher
    from ardistill.training import distill as distill
    from ardistill.trajectories import OnlineTrajectories as OnlineTrajectories
    from ardistill.trajectories import ShardSampler as ShardSampler
    from ardistill.trajectories import TrajectoryDataset as TrajectoryDataset
    from ardistill.trajectories import record as record

_HOME = {
    "Family": "families",
    "OnlineTrajectories": "trajectories",
    "QuickstartConfig": "config",
    "ShardSampler": "trajectories",
    "Student": "student",
    "StudentConfig": "student",
    "Teacher": "teacher",
    "TrainingConfig": "config",
    "TrajectoryDataset": "trajectories",
    "compare": "evaluation",
    "distill": "training",
    "export": "publishing",
    "load": "publishing",
    "quickstart": "studies.quickstart",
    "record": "trajectories",
    "register_family": "families",
    "sample": "student",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:  # imported at first use, so that the command line answers at once
    if name == "__version__":
        return import_module("ardistill.errors").version()
    if name not in _HOME:
        raise AttributeError(f"module 'ardistill' has no attribute {name!r}")
    return getattr(import_module(f"ardistill.{_HOME[name]}"), name)
