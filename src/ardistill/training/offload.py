"""Activations in host memory: what a forward pass saves for the backward pass leaves the device until it is needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu


class _SaveActivations(save_on_cpu):
    """torch's ``save_on_cpu``, which would also copy the weights that each layer saves: these stay where they are."""

    def __init__(self, pin_memory: bool) -> None:
        super().__init__(pin_memory)
        copy = self.pack_hook

        def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
            is_weight = isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter)
            return (tensor.device, tensor.detach()) if is_weight else copy(tensor)

        self.pack_hook = pack


def offloaded() -> save_on_cpu:
    """Context of a forward pass whose activations are kept in host memory, pinned where a GPU copies from it.

    Blocks that are recomputed in the backward pass (gradient checkpointing) keep in host memory what they are given;
    what is recomputed stays on the device, where it is used at once.
    """
    return _SaveActivations(torch.cuda.is_available())
