"""Where a student's error comes from, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from ardistill.families import Condition
from ardistill.losses import inputs_and_targets
from ardistill.sampling import sample
from ardistill.student import Student
from ardistill.teacher import Teacher


@torch.no_grad()
def exposure_bias(
    student: Student, teacher: Teacher, states: Tensor, denoised: Tensor, condition: Condition, continue_steps: int = 6
) -> dict[str, list[float]]:
    """Mean squared error of each step, three ways.

    ``teacher_forced``: the step's inputs are the teacher's own. ``free_running``: they are the student's.
    ``teacher_continued``: the teacher goes on from the student's first step, so that only what the ODE makes of that
    first error is left; free-running minus teacher-continued is the exposure bias.

    Args:
        student: In evaluation mode.
        teacher: Its teacher, with the guidance that it was distilled with.
        states: The teacher's states at the student's knots, (b, s + 1, c, h, w).
        denoised: The teacher's x̂0 there, (b, s, c, h, w).
        condition: One row per sample.
        continue_steps: Solver steps of the teacher between two knots.

    Returns:
        Three lists of s numbers. ``teacher_continued`` is of the states and is left out unless the target is ``state``.
    """
    knots, target = student.config.knots, student.config.target
    inputs, targets = inputs_and_targets(states, denoised, knots, target)

    def per_step(estimates: Tensor) -> list[float]:
        return (estimates - targets).square().mean(dim=(0, 2, 3, 4)).tolist()

    free = sample(student, states[:, 0], condition)
    curves = {"teacher_forced": per_step(student(inputs, condition)), "free_running": per_step(free)}
    if target == "state":
        fine = teacher.knots(continue_steps * knots.num_steps)
        continued = [free[:, 0]]
        if knots.num_steps > 1:
            rest = fine.select(range(continue_steps, fine.num_steps + 1))
            continued += (
                teacher.solve_ode(free[:, 0], condition, rest).states[:, continue_steps::continue_steps].unbind(1)
            )
        curves["teacher_continued"] = per_step(torch.stack(continued, dim=1))
    return curves
