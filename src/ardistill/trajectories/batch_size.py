"""How many trajectories of a shard to solve at once: as many as the memory of the device takes."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHARE = 0.9
"""Share of the device's free memory that may be used; the rest is for what else runs there, and for fragments."""


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Search for the largest number that fits, within a quarter of it, by growing from 1.

    Args:
        fits: Whether a number fits.
        most: The largest number to try, 1 or more.

    Returns:
        A number that fits, or 1 if none does.
    """
    size, failing = 1, most + 1
    while size < most and fits(min(2 * size, most)):
        size = min(2 * size, most)
    if size < most:
        failing = min(2 * size, most)
    while failing - size > max(1, size // 4):
        middle = (size + failing) // 2
        if fits(middle):
            size = middle
        else:
            failing = middle
    return size


def fits_in_memory(attempt: Callable[[int], None], device: torch.device, rows: int) -> bool:
    """Whether an attempt with this many rows leaves the device some memory. Only CUDA's memory is counted.

    Args:
        attempt: Does the work for a number of rows.
        device: Where it is done.
        rows: The number of rows.
    """
    counts = device.type == "cuda"
    free, before = 0, 0
    if counts:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        free, before = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
    try:
        attempt(rows)
    except torch.OutOfMemoryError:
        return False
    finally:
        if counts:
            torch.cuda.empty_cache()
    return not counts or torch.cuda.max_memory_reserved(device) - before <= SHARE * free


def rows_at_once(attempt: Callable[[int], None], device: torch.device, most: int) -> int:
    """Measure how many of a shard's rows to solve at once; then the shard is divided into parts of nearly one size.

    Args:
        attempt: Solves a step of a number of rows.
        device: Where it is done.
        most: Rows of the shard; more are not tried.
    """
    found = largest_that_fits(lambda rows: fits_in_memory(attempt, device, rows), most)
    return -(-most // -(-most // found))
