"""Where a student's error comes from, step by step, and what it draws while it is trained."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ardistill.core.knots import Knots
from ardistill.devices import Device, resolve_device
from ardistill.evaluation.plots import PICTURES, sample_grid
from ardistill.families import Condition
from ardistill.files import check_target, whole_file
from ardistill.progress import bar
from ardistill.student import Student
from ardistill.student.sampling import sample
from ardistill.teacher import Teacher
from ardistill.training.losses import inputs_and_targets
from ardistill.trajectories import TrajectoryDataset, distinct_prompts, knot_indices, select_knots


def _save_archive(path: str | Path, count: int, batches: Iterable[Tensor]) -> None:
    """Write images as ADM's suite reads them, batch after batch: 50,000 would not fit into memory as floats."""
    with (
        whole_file(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        for number, images in enumerate(batches):
            pixels = ((images + 1) * 127.5).round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
            if number == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *pixels.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(pixels.contiguous().numpy().tobytes())


@torch.no_grad()
def exposure_bias(
    student: Student, teacher: Teacher, states: Tensor, denoised: Tensor, condition: Condition, solver: Knots
) -> dict[str, list[float]]:
    """Mean squared error of each step, three ways.

    ``teacher_forced``: the step's inputs are the teacher's own. ``free_running``: they are the student's.
    ``teacher_continued``: the teacher goes on from the student's first step, so that only what the ODE makes of that
    first error is left; free-running minus teacher-continued is the exposure bias. Student and teacher each work where
    they are.

    Args:
        student: In evaluation mode.
        teacher: Its teacher, with the guidance that it was distilled with.
        states: The teacher's states at the student's knots, (b, s + 1, c, h, w).
        denoised: The teacher's x̂0 there, (b, s, c, h, w).
        condition: One row per sample.
        solver: All knots that the trajectories were solved at.

    Returns:
        Three lists of s numbers. ``teacher_continued`` is of the states and is left out unless the target is ``state``.
    """
    knots, target = student.config.knots, student.config.target
    device = student.device
    states, denoised = states.to(device), denoised.to(device)
    condition = {name: value.to(device) for name, value in condition.items()}
    inputs, targets = inputs_and_targets(states, denoised, knots, target)

    def per_step(estimates: Tensor) -> list[float]:
        return (estimates.to(device) - targets).square().mean(dim=(0, *range(2, targets.ndim))).tolist()

    free = sample(student, states[:, 0], condition)
    curves = {"teacher_forced": per_step(student(inputs, condition)), "free_running": per_step(free)}
    if target == "state":
        first, *later = knot_indices(solver, knots)[1:]
        continued = [free[:, 0]]
        if later:
            rest = select_knots(solver, range(first, solver.num_steps + 1))
            solved = teacher.solve_ode(free[:, 0], condition, rest).states.to(device)
            continued += solved[:, [i - first for i in later]].unbind(1)
        curves["teacher_continued"] = per_step(torch.stack(continued, dim=1))
    return curves


@torch.no_grad()
def distance_to_solver(student: Student, teacher: Teacher, noise: Tensor, condition: Condition) -> float:
    """How far an untrained student draws from its teacher's solver in as many steps: 0 without history.

    Returns:
        Root mean square of the difference over that of the solver's images.
    """
    knots = student.config.knots
    solved = teacher.solve_ode(noise, condition, knots)
    drawn = sample(student, noise, condition)
    expected = (solved.states if student.config.target == "state" else solved.denoised)[:, -1].to(drawn.device)
    return float((drawn[:, -1] - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def trajectory_grid(teacher: Teacher, data: TrajectoryDataset, path: str | Path, rows: Sequence[int]) -> None:
    """Save a PNG of recorded trajectories, one a row, every stored state decoded, from noise to image.

    Args:
        teacher: Whose VAE decodes.
        data: Opened for as many steps as states are to be shown.
        path: PNG to write.
        rows: Which trajectories, all of one size.

    Raises:
        ValueError: The teacher draws no images, or there is no such trajectory.
    """
    if wrong := [i for i in rows if not 0 <= i < len(data)]:
        raise ValueError(f"expected trajectories in 0..{len(data) - 1}, got {wrong[0]}")
    check_target(path, PICTURES)
    chosen = torch.tensor(rows, device="cpu")
    states, _, _ = data.stacked(chosen)
    names, labels = teacher.companions.get("id2label") or {}, data.labels[chosen].tolist()
    pictures = {}
    for index, label, path_of_states in zip(rows, labels, states, strict=True):
        name = data.prompts[label] if data.prompts else str(names.get(str(label), label)).partition(",")[0]
        pictures[f"{index}: {name[:24]}"] = teacher.decode(path_of_states)
    sample_grid(pictures, path, [f"σ {sigma:.2f}" for sigma in data.knots.sigma])


def validation_grid(
    teacher: Teacher, data: TrajectoryDataset, folder: str | Path, count: int = 10
) -> Callable[[Student, int], np.ndarray]:
    """Draw a grid from fixed held-out noise whenever it is called: the teacher's row, then the student's.

    Args:
        teacher: With the guidance of the trajectories; its row is drawn once, at the first call.
        data: The training trajectories, whose first conditions are drawn; the noise is of the next seed.
        folder: Where ``step-00000500.png`` and its like go.
        count: Images a row.

    Returns:
        (student, steps done) -> the picture, (height, width, 3) bytes.
    """
    folder = Path(folder)
    count = min(count, len(data))
    noise = teacher.noise(data.manifest.seed + 1, 0, count)
    rows: dict[str, Tensor] = {}

    @torch.no_grad()
    def draw(student: Student, step: int) -> np.ndarray:
        condition = data.condition(slice(count))
        if not rows:
            before = teacher.device
            solved = teacher.to(student.device).solve_ode(noise, condition, data.manifest.knots)
            rows["teacher"] = teacher.decode(solved.states[:, -1])
            teacher.transformer.to(before)  # not needed again
        rows["student"] = teacher.decode(sample(student, noise, condition)[:, -1])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:08d}.png"
        sample_grid(rows, path, [str(int(i)) for i in data.labels[:count]])
        return np.asarray(Image.open(path).convert("RGB"))

    return draw


def _conditions(
    teacher: Teacher, given: Sequence[Any], count: int, batch_size: int, device: torch.device
) -> Iterator[Condition]:
    """Conditions of prompts or classes in turn, one batch after the other.

    Prompts are encoded some batches ahead, not all at once: their embeddings take megabytes each.
    """
    longest, ahead = teacher.longest_prompt(given) if teacher.takes_text else None, 8 * batch_size
    for first in range(0, count, ahead):
        rows = [given[i % len(given)] for i in range(first, min(first + ahead, count))]
        table = (
            teacher.encode(rows, device=device, longest=longest)
            if teacher.takes_text
            else {"class_labels": torch.tensor(rows, device="cpu")}
        )
        teacher.check_condition(table)
        for at in range(0, len(rows), batch_size):
            yield {name: value[at : at + batch_size] for name, value in table.items()}


@torch.no_grad()
def draw_samples(
    student: Student,
    teacher: Teacher,
    path: str | Path,
    *,
    count: int = 20,
    seed: int = 0,
    class_labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 50,
    device: Device = None,
) -> None:
    """Draw a student's samples into a PNG grid, ten a row, or into an ``.npz`` file for the ADM evaluation suite.

    Args:
        student: Draws.
        teacher: Decodes.
        path: Ends in ``.png``; or in ``.npz``: ``arr_0`` of bytes, (count, h, w, 3), as ADM's evaluator.py reads it.
        count: Images.
        seed: Of the noise.
        class_labels: Classes to draw, in turn; all classes if not given.
        prompts: What to draw, in turn, where the teacher takes text.
        guidance_scale: For a student that is told of it; the middle of its range if not given.
        batch_size: Images drawn at once.
        device: Where student and VAE are moved to; where the student is if not given.

    Raises:
        ValueError: No image is asked for, or what the teacher is not conditioned on, or a guidance scale of a student
            that absorbed one, or outside of its range.
    """
    if count < 1:
        raise ValueError(f"expected 1 image or more, got {count}")
    check_target(path, [*PICTURES, ".npz"])
    student.config.check_guidance(guidance_scale)
    scale = student.config.guidance_scale if guidance_scale is None else guidance_scale
    where = resolve_device(device, student.device)
    name = teacher.name or "the teacher"
    if teacher.takes_text:
        if class_labels or prompts is None or not len(prompts):
            raise ValueError(f"{name} takes prompts, not class labels: give it some")
        distinct_prompts(prompts)
        given: list[Any] = list(prompts[:count])
    else:
        if prompts:
            raise ValueError(f"{name} takes class labels, not prompts")
        given = list(class_labels or range(teacher.num_classes))[:count]
        teacher.check_condition({"class_labels": torch.tensor(given, device="cpu")})
    student, generator = student.to(where).eval(), torch.Generator().manual_seed(seed)
    teacher.move_vae(where)

    def draw() -> Iterator[Tensor]:
        batches = _conditions(teacher, given, count, batch_size, where)
        total = -(-count // batch_size)
        for condition in bar(batches, total=total, desc="sample", disable=total == 1):
            rows = len(next(iter(condition.values())))
            condition["guidance"] = torch.full((rows,), float(scale), dtype=torch.float32, device="cpu")
            noise = torch.randn(rows, *teacher.sample_shape, generator=generator, dtype=torch.float32, device="cpu")
            yield teacher.decode(sample(student, noise, condition)[:, -1])

    if str(path).endswith(".npz"):
        _save_archive(path, count, draw())
        return
    images, shown = list(draw()), given if teacher.takes_text else [f"class {label}" for label in given]
    width = min(count, 10)
    blank = -count % width
    drawn = torch.cat([*images, images[0].new_ones(blank, *images[0].shape[1:])])
    grid = {str(first): drawn[first : first + width] for first in range(0, count, width)}
    sample_grid(grid, path, [shown[i % len(shown)] for i in range(count)] + [""] * blank)
