"""Chooses devices and precision: the given model's device or else the best one, and bfloat16 where a GPU has it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn

from ardistill.config import PRECISIONS, WEIGHTS

Device = str | torch.device | None
"""A torch device or its name. ``"auto"`` is the best available device; None, the given model's or else the best."""


def best_device() -> torch.device:
    """This process's accelerator (CUDA, ROCm, MPS, XPU, ...), or the CPU if there is none.

    With several processes on one machine, ``LOCAL_RANK`` selects the accelerator of each.
    ``ACCELERATE_USE_CPU=true`` keeps the work on the CPU, as it does in accelerate.
    """
    if not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    index = int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index()))
    return torch.device(found.type, index % torch.accelerator.device_count())


def resolve_device(device: Device = None, of_model: torch.device | None = None) -> torch.device:
    """Find the device of a name; for None, the given model's device, or the best available one without a model.

    Args:
        device: A device or its name; ``"auto"`` is the best available device.
        of_model: The given model's device.

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
            raise RuntimeError("tensors on meta hold no values")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"expected auto or a device that this machine has, such as cpu or cuda:0, got {str(device)!r}: {reason}"
        ) from error
    return found


def resolve_precision(name: str, device: torch.device | str) -> Literal["no", "bf16"]:
    """Find the precision of matrix products: for ``auto``, ``bf16`` on a GPU that computes in bfloat16, else ``no``.

    Args:
        name: ``auto``, ``no`` or ``bf16``.
        device: Where the work is done.

    Returns:
        ``no`` (float32) or ``bf16`` (autocast to bfloat16).

    Raises:
        ValueError: The name is not known, or the device has no bfloat16.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown mixed_precision {name!r}; known: {', '.join(PRECISIONS)}")
    where = torch.device(device)
    if name == "bf16" and where.type == "cuda" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"expected a device with bfloat16 for mixed_precision bf16, got {device_name(where)}; name another device, "
            "or choose mixed_precision no, with a new folder if the run or recording began in bf16"
        )
    if name != "auto":
        return "bf16" if name == "bf16" else "no"
    if where.type != "cuda" or not torch.cuda.is_available():
        return "no"
    with torch.cuda.device(where):  # an older GPU emulates bfloat16, slower than float32
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def resolve_weights(name: str, device: torch.device | str) -> str:
    """Find the type of the weights that are not trained: for ``auto``, bfloat16 on a GPU that computes in it, else
    float32.

    Args:
        name: ``auto``, ``float32``, ``bfloat16``, ``int8`` or ``nf4``.
        device: Where the weights are used.

    Raises:
        ValueError: The name is not known, the device does not compute with such weights, or the package that quantises
            is not installed.
    """
    if name not in WEIGHTS:
        raise ValueError(f"unknown weights {name!r}; known: {', '.join(WEIGHTS)}")
    where = torch.device(device)
    if name == "auto":
        return "bfloat16" if resolve_precision("auto", where) == "bf16" else "float32"
    is_cuda = where.type == "cuda" and torch.cuda.is_available()
    if name != "float32" and is_cuda and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"expected a device with bfloat16 for weights {name}, got {device_name(where)}; choose weights float32"
        )
    if name == "nf4" and where.type == "cpu":
        raise ValueError("expected a GPU for weights nf4, got cpu; choose weights int8 or bfloat16, or another device")
    package = {"int8": "torchao", "nf4": "bitsandbytes"}.get(name)
    if package and find_spec(package) is None:
        raise ValueError(f"weights {name} needs {package}: pip install 'ardistill[quantised]'")
    return name


def weights_of(module: nn.Module) -> str:
    """The type of a module's weights, as ``resolve_weights`` names it; ``float16`` is one that it never chooses."""
    kinds = {type(x) for x in module.parameters()}
    if any(x.__module__.startswith("torchao.") for x in kinds):
        return "int8"
    if any(x.__name__ == "Params4bit" for x in kinds):
        return "nf4"
    return str(first_dtype(module)).removeprefix("torch.")


@contextlib.contextmanager
def tf32(device: torch.device | str) -> Iterator[None]:
    """Allow TF32 in products of float32 on a GPU within the block, unless torch has been told otherwise."""
    matmul, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cpu.fp32_precision  # the call below changes it too
    if torch.device(device).type != "cuda" or matmul.fp32_precision != "none":
        yield
        return
    torch.set_float32_matmul_precision("high")  # what Inductor reads; fp32_precision alone would make that raise
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision, cpu.fp32_precision = "none", before


@contextlib.contextmanager
def precision(name: str, module: nn.Module) -> Iterator[None]:
    """Compute in a precision with a module on its device within the block: autocast, and TF32 for float32 on a GPU.

    Args:
        name: ``no``, ``bf16`` or ``auto``, which leaves autocast alone where it is on already or the module's weights
            have 16 bits, and elsewhere is what `resolve_precision` says.
        module: The module that computes.

    Raises:
        ValueError: See `resolve_precision`.
    """
    where = device_of(module)
    asked, is_on = resolve_precision(name, where), torch.is_autocast_enabled(where.type)
    if name == "auto" and asked == "bf16":
        asked = "no" if first_dtype(module).itemsize < 4 else asked
    with tf32(where):
        if (asked == "bf16") == is_on or (name == "auto" and is_on):
            yield
        else:
            with torch.autocast(where.type, torch.bfloat16, enabled=asked == "bf16"):
                yield


def compiles(asked: bool | None, device: torch.device, passes: int) -> bool:
    """Whether to compile the blocks of a transformer: as asked, or where it pays, if nothing is asked.

    It pays on CUDA from 1,000 forward passes on, where Triton and a C compiler, which it needs, are there.

    Args:
        asked: What the user chose; None leaves the choice to this function.
        device: Where the transformer runs.
        passes: Forward passes to come.
    """
    if asked is not None or device.type != "cuda" or passes < 1000:
        return bool(asked)
    return find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))


def device_of(module: nn.Module) -> torch.device:
    """The device that a module runs on: that of its offload hook, else that of its first parameter or buffer."""
    execution_device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if execution_device is not None:
        return torch.device(execution_device)
    found = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if found is None else found.device


def synchronize(device: Device = None) -> None:
    """Wait until a device, the best available one if not given, has finished all queued work."""
    where = resolve_device(device)
    module = torch.get_device_module(where)
    module.synchronize(*([] if where.type == "mps" else [where]))  # the default is the current device


def first_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's first floating-point weight that its class does not keep in float32; else float32."""
    kept = {*(getattr(module, "_keep_in_fp32_modules", None) or ())}
    floating = (x.dtype for n, x in module.named_parameters() if x.is_floating_point() and not kept & {*n.split(".")})
    return next(floating, torch.float32)


def device_name(device: torch.device) -> str:
    """The product name of a device, such as ``NVIDIA H100 80GB HBM3``; its type if torch has no name for it."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return named(device) if named is not None else device.type
