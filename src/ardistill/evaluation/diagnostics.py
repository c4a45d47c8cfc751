"""Diagnostics of a student: its error in each step, and its distance from the teacher's solver before training."""

from __future__ import annotations

import torch
from torch import Tensor

from ardistill.core.config import StudentConfig
from ardistill.core.knots import Knots
from ardistill.devices import precision
from ardistill.families import Condition
from ardistill.student import Student, sample
from ardistill.teacher import Teacher
from ardistill.training.losses import inputs_and_targets
from ardistill.trajectories import knot_indices, select_knots


@torch.no_grad()
def exposure_bias(
    student: Student,
    teacher: Teacher,
    states: Tensor,
    denoised: Tensor,
    condition: Condition,
    solver: Knots,
    mixed_precision: str = "auto",
) -> dict[str, list[float]]:
    """Mean squared error of each step, measured in three ways.

    ``teacher_forced``: each step's inputs are the teacher's states. ``free_running``: they are the student's own
    estimates. ``teacher_continued``: the teacher solves on from the student's first step, which shows what the ODE
    makes of that step's error alone; free-running minus teacher-continued is the exposure bias. Student and teacher
    each run on their own device.

    Args:
        student: In evaluation mode.
        teacher: Its teacher, at the guidance that it was distilled with.
        states: The teacher's states at the student's knots, (b, s + 1, c, h, w).
        denoised: The teacher's x̂0 at these knots, (b, s, c, h, w).
        condition: One row per sample.
        solver: All knots that the trajectories were solved at.
        mixed_precision: What student and teacher compute in, as for ``ardistill.student.sample``.

    Returns:
        Three lists of s numbers, noisiest step first. ``teacher_continued`` is an error of states, and is left out
        unless the student's target is ``state``.
    """
    knots, target = student.config.knots, student.config.target
    device = student.device
    states, denoised = states.to(device), denoised.to(device)
    condition = {name: value.to(device) for name, value in condition.items()}
    inputs, targets = inputs_and_targets(states, denoised, knots, target)

    def per_step(estimates: Tensor) -> list[float]:
        return (estimates.to(device) - targets).square().mean(dim=(0, *range(2, targets.ndim))).tolist()

    free = sample(student, states[:, 0], condition, mixed_precision)
    with precision(mixed_precision, student.transformer):
        forced = student(inputs, condition)
    curves = {"teacher_forced": per_step(forced), "free_running": per_step(free)}
    if target == "state":
        first, *later = knot_indices(solver, knots)[1:]
        continued = [free[:, 0]]
        if later:
            rest = select_knots(solver, range(first, solver.num_steps + 1))
            with precision(mixed_precision, teacher.transformer):
                solved = teacher.solve_ode(free[:, 0], condition, rest).states.to(device)
            continued += solved[:, [i - first for i in later]].unbind(1)
        curves["teacher_continued"] = per_step(torch.stack(continued, dim=1))
    return curves


@torch.no_grad()
def distance_to_solver(
    student: Student,
    teacher: Teacher,
    noise: Tensor,
    condition: Condition,
    mixed_precision: str = "auto",
) -> float:
    """Distance between a student's samples and those of its teacher's solver in as many steps.

    An untrained student without history, or with closed gates, is at 0.

    Args:
        student: In evaluation mode.
        teacher: Its teacher, at the guidance that it was distilled with.
        noise: x_T, (n, c, h, w).
        condition: One row per sample.
        mixed_precision: What student and teacher compute in, as for ``ardistill.student.sample``.

    Returns:
        Root mean square of the difference, divided by that of the solver's samples.
    """
    solved = solver_samples(teacher, student.config, noise, condition, mixed_precision)
    return distance_to_samples(student, solved, noise, condition, mixed_precision)


@torch.no_grad()
def solver_samples(
    teacher: Teacher, config: StudentConfig, noise: Tensor, condition: Condition, mixed_precision: str = "auto"
) -> Tensor:
    """What the teacher's solver draws at a student's knots, (n, c, h, w): the teacher's part of `distance_to_solver`.

    Args:
        teacher: At the guidance that the student was distilled with.
        config: The student's configuration.
        noise: x_T, (n, c, h, w).
        condition: One row per sample.
        mixed_precision: What the teacher computes in, as for ``ardistill.student.sample``.
    """
    with precision(mixed_precision, teacher.transformer):
        solved = teacher.solve_ode(noise, condition, config.knots)
    return (solved.states if config.target == "state" else solved.denoised)[:, -1]


@torch.no_grad()
def distance_to_samples(
    student: Student, solved: Tensor, noise: Tensor, condition: Condition, mixed_precision: str = "auto"
) -> float:
    """What `distance_to_solver` gives, from what `solver_samples` drew, so that one model at a time takes memory.

    Args:
        student: In evaluation mode.
        solved: The solver's samples, (n, c, h, w).
        noise: x_T of them, (n, c, h, w).
        condition: One row per sample.
        mixed_precision: What the student computes in, as for ``ardistill.student.sample``.
    """
    drawn = sample(student, noise, condition, mixed_precision)
    expected = solved.to(drawn.device)
    return float((drawn[:, -1] - expected).square().mean().sqrt() / expected.square().mean().sqrt())
