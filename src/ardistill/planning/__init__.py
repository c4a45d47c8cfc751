"""Estimates of what a distillation costs, before it starts."""

from ardistill.planning.cost import ARCHITECTURES as ARCHITECTURES
from ardistill.planning.cost import Cost as Cost
from ardistill.planning.cost import cost as cost
from ardistill.planning.cost import describe as describe
from ardistill.planning.cost import transformer_config as transformer_config

__all__ = ["ARCHITECTURES", "Cost", "cost", "describe", "transformer_config"]
