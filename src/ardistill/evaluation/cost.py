"""Multiply-accumulates and latency, measured on the real module."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_macs(run: Callable[[], object]) -> float:
    """Multiply-accumulates of ``run``: torch's FlopCounterMode (matmul, convolution, attention), halved."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2


def latency_ms(run: Callable[[], object], repeats: int = 5) -> float:
    """Median wall-clock milliseconds of ``run`` after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[len(times) // 2]
