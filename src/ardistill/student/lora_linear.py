"""PEFT's adapter layer with a forward pass of few operations; importing this module needs PEFT."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn import functional as F


class LoraLinear(Linear):
    """PEFT's layer W x + s B A x, computed as one product with A and one with B that adds to W x.

    PEFT's own forward pass casts the input to the dtype of A and back under autocast, multiplies by s and adds, each a
    pass over all activations. Parameters, names, merging and whatever else is not the plain case are PEFT's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output for an input of any leading axes, (..., in) -> (..., out)."""
        plain = self.active_adapters == ["default"] and not (self.disable_adapters or self.merged or args or kwargs)
        if not plain:
            return super().forward(x, *args, **kwargs)
        a: Any = self.lora_A["default"].weight  # PEFT does not type its layers
        b: Any = self.lora_B["default"].weight
        if not (x.dtype == a.dtype == self.base_layer.weight.dtype or torch.is_autocast_enabled(x.device.type)):
            return super().forward(x)
        result = self.base_layer(x)
        low = F.linear(x, a)
        added = torch.addmm(result.flatten(0, -2), low.flatten(0, -2), b.t(), alpha=self.scaling["default"])
        return added.view_as(result)
