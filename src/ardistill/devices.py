"""Where work happens: on the device of the model that is given; where none is given, on the best device there is."""

from __future__ import annotations

import os

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn

Device = str | torch.device | None
"""A torch device or its name; ``"auto"`` is the best there is, and None what the rule above picks."""


def best_device() -> torch.device:
    """This process's accelerator (CUDA, ROCm, MPS, XPU, ...), or the CPU where there is none.

    Of several processes on one machine each gets the accelerator that ``LOCAL_RANK`` counts.
    ``ACCELERATE_USE_CPU=true`` keeps the work on the CPU, as it does in accelerate.
    """
    if not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    index = int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index()))
    return torch.device(found.type, index % torch.accelerator.device_count())


def resolve_device(device: Device = None, of_model: torch.device | None = None) -> torch.device:
    """The device of that name; for None where the given model is, if one is given; else the best there is.

    Args:
        device: A device or its name; ``"auto"`` is the best there is.
        of_model: Where the given model is.

    Raises:
        ValueError: This machine has no such device.
    """
    if device is None and of_model is not None:
        return of_model
    if device is None or device == "auto":
        return best_device()
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("tensors on meta hold no numbers")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"expected auto or a device that this machine has, such as cpu or cuda:0, got {str(device)!r}: {reason}"
        ) from error
    return found


def device_of(module: nn.Module) -> torch.device:
    """Where a module runs: the device that an offload hook brings it to, else that of its first parameter or buffer."""
    execution_device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if execution_device is not None:
        return torch.device(execution_device)
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def synchronize(device: Device = None) -> None:
    """Wait until the device, the best there is if not given, has done all that it was asked to."""
    where = resolve_device(device)
    module = torch.get_device_module(where)
    module.synchronize(*([] if where.type == "mps" else [where]))  # else it is the current one that is waited for


def device_name(device: torch.device) -> str:
    """A device as its maker calls it, such as ``NVIDIA H100 80GB HBM3``; its type where torch does not say."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return named(device) if named is not None else device.type
