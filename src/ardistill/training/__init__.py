"""Training a student: regression onto the teacher's trajectories and, optionally, with a critic of its images."""

from ardistill.training.adversary import Adversary as Adversary
from ardistill.training.coverage import lies_among as lies_among
from ardistill.training.critic import Critic as Critic
from ardistill.training.distill import Validate as Validate
from ardistill.training.distill import distill as distill
from ardistill.training.encode import encode as encode
from ardistill.training.finetune import finetune as finetune
from ardistill.training.fsdp import divided as divided
from ardistill.training.fsdp import shard as shard
from ardistill.training.launch import base_weights as base_weights
from ardistill.training.launch import reads_in_parts as reads_in_parts
from ardistill.training.losses import inputs_and_targets as inputs_and_targets
from ardistill.training.real_images import save_real as save_real
from ardistill.training.run_folder import check_run_folder as check_run_folder
from ardistill.training.run_folder import environment as environment
from ardistill.training.run_folder import read_log as read_log
from ardistill.training.watchdog import TrainingDivergedError as TrainingDivergedError

__all__ = [
    "Adversary",
    "Critic",
    "TrainingDivergedError",
    "Validate",
    "base_weights",
    "check_run_folder",
    "distill",
    "divided",
    "encode",
    "environment",
    "finetune",
    "inputs_and_targets",
    "lies_among",
    "read_log",
    "reads_in_parts",
    "save_real",
    "shard",
]
