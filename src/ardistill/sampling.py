"""Few-step sampling: one pass of one block of tokens per step, earlier steps from the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ardistill.families import Condition
from ardistill.student import Student


@torch.no_grad()
def sample(student: Student, noise: Tensor, condition: Condition) -> Tensor:
    """Draw images from noise.

    Args:
        student: Its mode is left as it is; nothing in it is random.
        noise: x_T, (b, c, h, w).
        condition: One row per sample.

    Returns:
        Each step's estimate, (b, s, c, h, w); the last is the image.

    Raises:
        ValueError: Noise and condition are not of as many rows, the noise is no batch, or a guidance scale is outside
            of those that the student was distilled at.
    """
    rows = {len(value) for value in condition.values()}
    if noise.ndim < 4 or rows - {len(noise)}:
        raise ValueError(
            f"expected noise (b, c, h, w) and a condition of as many rows, got {tuple(noise.shape)} and "
            f"{sorted(rows)} rows"
        )
    student.config.check_guidance(condition.get("guidance"))
    cache: dict = {}
    inputs, estimates = noise, []
    for step in range(student.num_steps):
        estimates.append(student.step(inputs, step, condition, cache))
        inputs = student.next_input(estimates[-1], noise, step)
    return torch.stack(estimates, dim=1)
