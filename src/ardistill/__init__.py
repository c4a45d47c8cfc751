"""AutoRegressive Distillation of diffusion transformers (Kim et al. 2025, arXiv:2504.11295)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ardistill.config import AdversarialConfig as AdversarialConfig
    from ardistill.config import CostConfig as CostConfig
    from ardistill.config import JudgeConfig as JudgeConfig
    from ardistill.config import QuickstartConfig as QuickstartConfig
    from ardistill.config import TrainingConfig as TrainingConfig
    from ardistill.evaluation import Comparison as Comparison
    from ardistill.evaluation import compare_students as compare_students
    from ardistill.evaluation import evaluate as evaluate
    from ardistill.families import Family as Family
    from ardistill.families import register_family as register_family
    from ardistill.planning import cost as cost
    from ardistill.planning import doctor as doctor
    from ardistill.publishing import export as export
    from ardistill.publishing import load as load
    from ardistill.publishing import push as push
    from ardistill.publishing import push_trajectories as push_trajectories
    from ardistill.student import Student as Student
    from ardistill.student import StudentConfig as StudentConfig
    from ardistill.student import sample as sample
    from ardistill.studies import quickstart as quickstart
    from ardistill.teacher import Teacher as Teacher
    from ardistill.training import distill as distill
    from ardistill.training import encode as encode
    from ardistill.training import finetune as finetune
    from ardistill.trajectories import OnlineTrajectories as OnlineTrajectories
    from ardistill.trajectories import ShardSampler as ShardSampler
    from ardistill.trajectories import TrajectoryDataset as TrajectoryDataset
    from ardistill.trajectories import record as record

    __version__: str

_ROOMS = {
    "config": ("AdversarialConfig", "CostConfig", "JudgeConfig", "QuickstartConfig", "TrainingConfig"),
    "evaluation": ("Comparison", "compare_students", "evaluate"),
    "families": ("Family", "register_family"),
    "planning": ("cost", "doctor"),
    "publishing": ("export", "load", "push", "push_trajectories"),
    "student": ("Student", "StudentConfig", "sample"),
    "studies": ("quickstart",),
    "teacher": ("Teacher",),
    "training": ("distill", "encode", "finetune"),
    "trajectories": ("OnlineTrajectories", "ShardSampler", "TrajectoryDataset", "record"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> object:  # imported at first use, so that the command line answers at once
    if name == "__version__":
        return import_module("ardistill.errors").version()
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'ardistill' has no attribute {name!r}")
    return getattr(import_module(f"ardistill.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
