"""Cost of a call: multiply-accumulates and latency, measured on the module itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ardistill.devices import Device, synchronize


def _attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of the CPU's fused attention, which torch's counter does not know, from shapes (b, h, t, d)."""
    return sdpa_flop_count(query, key, value)


def count_macs(run: Callable[[], object]) -> float:
    """Multiply-accumulates of ``run``: half the operations that torch's FlopCounterMode counts.

    Matrix products, convolutions and attention are counted.
    """
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter, torch.no_grad():
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
