"""Few-step sampling: one evaluation of the network per step, with the keys and values of earlier steps cached."""

from __future__ import annotations

import torch
from torch import Tensor

from ardistill.devices import precision
from ardistill.families import Condition
from ardistill.student.model import FewStepModel


@torch.no_grad()
def sample(student: FewStepModel, noise: Tensor, condition: Condition, mixed_precision: str = "auto") -> Tensor:
    """Draw latents from noise; returns each step's estimate.

    Args:
        student: A student in either mode, as nothing in it is random; weights of any dtype.
        noise: x_T, (b, c, h, w), of any dtype, on any device.
        condition: One row per sample.
        mixed_precision: ``no``, ``bf16`` (matrix products in bfloat16) or ``auto``: bf16 on a GPU that computes in it,
            else no; where autocast is on already, or the weights have 16 bits, it is left as it is.

    Returns:
        Each step's estimate, (b, s, c, h, w), in float32 on the student's device; the last is the sample.

    Raises:
        ValueError: Noise and condition have different numbers of rows, the noise is not a batch, or a guidance scale
            is outside of the range that the student was distilled at.
    """
    noise, condition = placed_inputs(student, noise, condition)
    return draw_steps(student, noise, condition, mixed_precision)


def placed_inputs(student: FewStepModel, noise: Tensor, condition: Condition) -> tuple[Tensor, Condition]:
    """Noise, in float32, and condition where the student takes them; checks them as ``sample`` says."""
    rows = {len(value) for value in condition.values()}
    if noise.ndim < 4 or rows - {len(noise)}:
        raise ValueError(
            f"expected noise (b, c, h, w) and a condition of as many rows, got {tuple(noise.shape)} and "
            f"{sorted(rows)} rows"
        )
    student.config.check_guidance(condition.get("guidance"))
    return noise.to(student.device, torch.float32), student.family.place(condition, student.device)


def draw_steps(student: FewStepModel, noise: Tensor, condition: Condition, mixed_precision: str) -> Tensor:
    """All steps from placed noise, (b, s, c, h, w); nothing crosses to the device, and nothing waits for it."""
    cache: dict = {}
    inputs, estimates = noise, []
    with precision(mixed_precision, student.transformer):
        for step in range(student.num_steps):
            estimates.append(student.step(inputs, step, condition, cache))
            inputs = student.next_input(estimates[-1], noise, step)
    return torch.stack(estimates, dim=1)
