"""Cost of a call: multiply-accumulates and latency, measured on the module itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ardistill.devices import Device, synchronize


def count_macs(run: Callable[[], object]) -> float:
    """Multiply-accumulates of ``run``: half the operations that torch's FlopCounterMode counts.

    Matrix products, convolutions and attention are counted. Attention runs without fused kernels meanwhile, because the
    counter does not know the CPU's.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops() / 2


def latency_ms(run: Callable[[], object], repeats: int = 5, device: Device = None) -> float:
    """Median wall-clock milliseconds of ``run`` after one warm-up.

    Args:
        run: The call to measure.
        repeats: Calls after the warm-up.
        device: The device that it runs on, which is waited for; the best device if not given.
    """
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - began)
    del times[0]
    return 1000 * sorted(times)[len(times) // 2]
