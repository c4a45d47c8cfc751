"""What to know before a start: what a distillation costs, and whether this machine is ready for it."""

from ardistill.planning.cost import DIT_MODELS as DIT_MODELS
from ardistill.planning.cost import Cost as Cost
from ardistill.planning.cost import cost as cost
from ardistill.planning.cost import describe as describe
from ardistill.planning.cost import transformer_config as transformer_config
from ardistill.planning.doctor import Diagnosis as Diagnosis
from ardistill.planning.doctor import doctor as doctor
from ardistill.planning.machine import Finding as Finding
from ardistill.planning.self_test import SelfTest as SelfTest

__all__ = ["DIT_MODELS", "Cost", "Diagnosis", "Finding", "SelfTest", "cost", "describe", "doctor", "transformer_config"]
