"""Estimates of what a distillation costs, before it starts."""

from ardistill.planning.cost import DIT_MODELS as DIT_MODELS
from ardistill.planning.cost import Cost as Cost
from ardistill.planning.cost import cost as cost
from ardistill.planning.cost import describe as describe
from ardistill.planning.cost import transformer_config as transformer_config

__all__ = ["DIT_MODELS", "Cost", "cost", "describe", "transformer_config"]
