"""Times, ratios, counted operations and peak memory of calls on one device."""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ardistill.devices import synchronize

Run = Callable[[], object]
"""A call that is measured."""
MOST = 50
"""Repetitions of a short call."""


def seconds_of(run: Run, device: torch.device) -> float:
    """Wall-clock seconds of one call, all work on the device included."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def timed(run: Run, device: torch.device, seconds: float) -> dict[str, float]:
    """Median, least and most milliseconds of a call, repeated for about this many seconds after two warm-ups.

    ``first_s`` is how long the first call took, in which compiled code is compiled.
    """
    first = seconds_of(run, device)
    count = _count(seconds_of(run, device), seconds)
    times = [1000 * seconds_of(run, device) for _ in range(count)]
    return {"ms": statistics.median(times), "ms_low": min(times), "ms_high": max(times), "first_s": first}


def paired(base: Run, run: Run, device: torch.device, seconds: float, least: int = 3) -> dict[str, float]:
    """Milliseconds of a call, and its ratio to a baseline that runs beside it, before and after it in turn.

    Pairs are repeated for about ``seconds``, and at least ``least`` times.

    Returns:
        ``ms`` (median) of the call and ``base_ms`` of the baseline; ``ratio``, the median over the pairs, with its 95 %
        bootstrap interval; ``first_s``, how long the first call took.
    """
    first, _ = seconds_of(run, device), seconds_of(base, device)
    warm = seconds_of(base, device) + seconds_of(run, device)
    times: dict[str, list[float]] = {"base": [], "run": []}
    for index in range(_count(warm, seconds, least)):
        pair = [("base", base), ("run", run)]
        for name, call in pair if index % 2 else reversed(pair):
            times[name].append(1000 * seconds_of(call, device))
    ratios = [one / other for one, other in zip(times["run"], times["base"], strict=True)]
    low, high = interval(ratios)
    medians = {"ms": statistics.median(times["run"]), "base_ms": statistics.median(times["base"]), "first_s": first}
    return medians | {"ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}


def _count(one: float, seconds: float, least: int = 3) -> int:
    return max(least, min(MOST, int(seconds / max(one, 1e-6))))


def interval(ratios: list[float], resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples)]


def count_flops(run: Run) -> float:
    """Operations of the matrix products, convolutions and attention of a call, its backward pass included.

    Attention runs without fused kernels meanwhile, because the counter does not know all of them.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Products of float32 in TF32 or not within this block; what torch was told before is put back."""
    matmul, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision, cpu.fp32_precision
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision, cpu.fp32_precision = before


@contextlib.contextmanager
def precision(kind: str, device: torch.device) -> Iterator[None]:
    """Matrix products in ``bf16`` (autocast; what that leaves in float32, in TF32), ``tf32`` or ``fp32``."""
    with tf32(kind != "fp32"), torch.autocast(device.type, torch.bfloat16, enabled=kind == "bf16"):
        yield


def release(device: torch.device) -> None:
    """Give back memory that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory that is allocated on a GPU within this context, beyond what was allocated at its start."""

    def __init__(self, device: torch.device, own: int = 0) -> None:
        self.device, self.own = device, own
        """``own`` bytes were allocated before and count as well, such as the weights of the measured model."""

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            release(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def figures(self) -> dict[str, float]:
        """``peak_gib`` so far; nothing on a device that does not count."""
        if self.device.type != "cuda":
            return {}
        return {"peak_gib": (torch.cuda.max_memory_allocated(self.device) - self.before + self.own) / 2**30}


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors: list[Any] = [*module.parameters(), *module.buffers()]
    return sum(x.nbytes for x in tensors)


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
