"""Samplers: the arms of a comparison, each of which turns noise and a condition into latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ardistill.devices import precision
from ardistill.families import Condition
from ardistill.student import Student, sample
from ardistill.teacher import Teacher


@dataclass(frozen=True)
class Sampler:
    """An arm of a comparison."""

    draw: Callable[[Tensor, Condition], Tensor]
    """(noise (b, c, h, w), condition) -> latents or pixels, (b, c, h, w)."""
    nfe: int
    """Network evaluations per image; a guided solver step takes two."""
    device: torch.device | None = None
    """Noise and condition are moved to this device before ``draw`` is called and timed; not moved if None."""

    @classmethod
    def of_student(cls, student: Student, mixed_precision: str = "auto") -> Sampler:
        """A student, in all its steps, in the precision that `ardistill.devices.precision` names."""

        def draw(noise: Tensor, condition: Condition) -> Tensor:
            return sample(student, noise, condition, mixed_precision)[:, -1]

        return cls(draw, student.num_steps, student.device)

    @classmethod
    def of_teacher(cls, teacher: Teacher, num_steps: int, mixed_precision: str = "auto") -> Sampler:
        """The teacher's solver in ``num_steps`` steps, at the teacher's guidance scale."""
        knots = teacher.knots(num_steps)

        def draw(noise: Tensor, condition: Condition) -> Tensor:
            with precision(mixed_precision, teacher.transformer):
                return teacher.solve_ode(noise, condition, knots).states[:, -1]

        nfe = num_steps * (1 if teacher.guidance_scale == 1 or teacher.embeds_guidance else 2)
        return cls(draw, nfe, teacher.device)

    @classmethod
    def of_scheduler(cls, teacher: Teacher, scheduler: Any, num_steps: int) -> Sampler:
        """The teacher with a diffusers scheduler in place of its solver.

        Args:
            teacher: Predicts, at its guidance scale.
            scheduler: A diffusers scheduler configured for the teacher's noise schedule.
            num_steps: Scheduler steps.
        """

        @torch.no_grad()
        def draw(noise: Tensor, condition: Condition) -> Tensor:
            scheduler.set_timesteps(num_steps)
            guided, latents = teacher.guided(noise, condition), noise.to(teacher.device, torch.float32)
            for timestep in scheduler.timesteps:
                with precision("auto", teacher.transformer):
                    prediction = guided(latents, float(timestep))
                latents = scheduler.step(prediction, timestep, latents).prev_sample
            return latents

        return cls(draw, cls.of_teacher(teacher, num_steps).nfe, teacher.device)
