"""What the page shows: an image by a student, its teacher and the teacher's solver, from the same noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ardistill.core.knots import Knots
from ardistill.devices import precision, synchronize
from ardistill.evaluation import sample_grid
from ardistill.families import Condition
from ardistill.files.pixels import to_pictures
from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import Teacher

SHORT = 0.2
"""Seconds below which a sampler is timed three times."""


@dataclass(frozen=True)
class Drawn:
    """What one sampler drew, and what it took."""

    name: str
    """Who drew: ``student``, ``solver`` or ``teacher``."""
    images: Tensor
    """The denoised estimate after each of the student's steps, in [-1, 1], (s, c, h, w), on the CPU; the last is the
    image."""
    steps: tuple[int, ...]
    """The sampler's own step that each estimate belongs to, counted from 1; the last is its number of steps."""
    evaluations: int
    """Network evaluations for the image; a guided step of the teacher takes two."""
    seconds: float
    """Time for the image, without encoding the prompt and decoding latents."""

    @property
    def num_steps(self) -> int:
        """Number of steps that the sampler takes for the image."""
        return self.steps[-1]

    @property
    def pictures(self) -> list[Image.Image]:
        """The estimates as RGB pictures."""
        return to_pictures(self.images)

    def __str__(self) -> str:
        return f"{counted(self.evaluations, 'evaluation')}, {duration(self.seconds)}"


@dataclass(frozen=True)
class Drawing:
    """One image by three samplers, from the same noise and condition."""

    student: Drawn
    solver: Drawn
    """The teacher's own solver in as many steps as the student."""
    teacher: Drawn
    """The teacher's solver in many steps; its estimates are those at the noise levels nearest to the student's."""

    @property
    def samplers(self) -> tuple[Drawn, Drawn, Drawn]:
        """All three, in the order in which they are shown."""
        return self.student, self.solver, self.teacher


@torch.no_grad()
def draw(
    student: Student,
    teacher: Teacher,
    *,
    class_label: int = 0,
    prompt: str | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    teacher_steps: int = 24,
    mixed_precision: str = "auto",
) -> Drawing:
    """Draw one image with a student, with its teacher's solver in as many steps, and with the teacher in many.

    Args:
        student: In evaluation mode, on the teacher's device. It draws what ``draw_samples`` draws as its only image.
        teacher: Its teacher.
        class_label: Class to draw, for a teacher that takes classes.
        prompt: Prompt to draw, for a text-to-image teacher.
        seed: Seed of the noise.
        guidance_scale: For a student that takes the guidance scale as input, and then the teacher's, too; the scale
            that the student was distilled at, or the middle of its range, if not given.
        teacher_steps: Steps of the teacher.
        mixed_precision: What student and teacher compute in, as for ``ardistill.student.sample``.

    Raises:
        ValueError: The condition is not of the teacher's kind or out of range, the guidance scale is outside of the
            student's range, or seed or steps are out of range.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"expected a whole number from 0 as the seed, below 2 to the power of 63, got {seed}")
    if type(teacher_steps) is not int or not 1 <= teacher_steps <= 1000:
        raise ValueError(f"expected 1 to 1000 steps of the teacher, got {teacher_steps}")
    student.config.check_guidance(guidance_scale)
    scale = float(student.config.guidance_scale if guidance_scale is None else guidance_scale)
    condition = _condition(teacher, class_label, prompt)
    condition["guidance"] = torch.full((1,), scale, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, *teacher.sample_shape, generator=generator, dtype=torch.float32, device="cpu")

    def solved(name: str, steps: int, shown: Callable[[Knots], list[int]]) -> Drawn:
        knots = teacher.knots(steps)
        with precision(mixed_precision, teacher.transformer):
            found, seconds = _timed(lambda: teacher.solve_ode(noise, condition, knots).denoised, teacher.device)
        own, guided = shown(knots), scale != 1 and not teacher.embeds_guidance
        images = teacher.decode(found[0, [step - 1 for step in own]])
        return Drawn(name, images, tuple(own), steps * (1 + guided), seconds)

    steps, knots = [*range(1, student.num_steps + 1)], student.config.knots
    estimates, seconds = _timed(lambda: sample(student, noise, condition, mixed_precision), student.device)
    denoised = denoised_estimates(student.config, noise.to(estimates.device), estimates)[0]
    return Drawing(
        Drawn("student", teacher.decode(denoised), tuple(steps), len(steps), seconds),
        solved("solver", len(steps), lambda _: steps),
        solved("teacher", teacher_steps, lambda of_teacher: nearest_steps(knots, of_teacher)),
    )


def _condition(teacher: Teacher, class_label: int, prompt: str | None) -> Condition:
    """The condition of one image.

    Raises:
        ValueError: There is no prompt, or no such class.
    """
    if teacher.takes_text:
        if prompt is None or not prompt.strip():
            raise ValueError("expected a prompt, got an empty one; say what is to be drawn")
        return teacher.encode([prompt])
    if type(class_label) is not int or not 0 <= class_label < teacher.num_classes:
        raise ValueError(f"expected a class of 0 to {teacher.num_classes - 1}, got {class_label}")
    return {"class_labels": torch.tensor([class_label], device="cpu")}


def _timed(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """What a call returns, and its seconds until the device has finished: of a short call, the median of three."""
    times: list[float] = []
    while not times or (times[0] < SHORT and len(times) < 3):
        synchronize(device)
        began = time.perf_counter()
        found = run()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return found, sorted(times)[len(times) // 2]


def denoised_estimates(config: StudentConfig, noise: Tensor, estimates: Tensor) -> Tensor:
    """The denoised image that a student expects at each step, x̂0, (b, s, c, h, w).

    A student whose target is ``state`` goes from state to state. The solver step between two of them keeps x̂0 and the
    noise, so that both states, x = alpha x̂0 + sigma noise, give x̂0.

    Args:
        config: The student's configuration.
        noise: x_T, (b, c, h, w).
        estimates: What ``sample`` returned, (b, s, c, h, w).
    """
    if config.target != "state":
        return estimates
    knots, states, found = config.knots, [noise, *estimates.unbind(1)], []
    for s in range(knots.num_steps):
        (alpha, sigma), (next_alpha, next_sigma) = ((knots.alpha[i], knots.sigma[i]) for i in (s, s + 1))
        scale = next_alpha * sigma - alpha * next_sigma
        found.append(sigma / scale * states[s + 1] - next_sigma / scale * states[s])
    return torch.stack(found, dim=1)


def nearest_steps(knots: Knots, others: Knots) -> list[int]:
    """For each step, the step of other knots, counted from 1, that ends at the nearest noise level."""
    ends, theirs = _levels(knots), _levels(others)
    return [1 + min(range(others.num_steps), key=lambda i: abs(theirs[i] - end)) for end in ends]


def _levels(knots: Knots) -> list[float]:
    """The noise level at the end of each step, as an angle: 0 for an image, pi / 2 for noise."""
    return [math.atan2(sigma, alpha) for alpha, sigma in zip(knots.alpha[1:], knots.sigma[1:], strict=True)]


def save_steps(drawing: Drawing, path: str | Path) -> None:
    """Save a picture of all steps: a row for each sampler, a column for each of the student's steps.

    Args:
        drawing: What was drawn.
        path: PNG to write.
    """
    heads = [f"step {step}/{drawn.num_steps}" for drawn in drawing.samplers for step in drawn.steps]
    sample_grid({drawn.name: drawn.images for drawn in drawing.samplers}, path, heads)


def counted(count: int, noun: str) -> str:
    """``1 step``, ``4 steps``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time with two digits or more: ``2.3 ms``, ``310 ms``, ``1.2 s``, ``48 s``."""
    value, unit = (1000 * seconds, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
