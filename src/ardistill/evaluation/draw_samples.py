"""Draw a student's samples into a picture or an archive: the command ``sample`` in Python."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ardistill.devices import Device, resolve_device
from ardistill.evaluation.plots import PICTURES, sample_grid
from ardistill.evaluation.videos import CLIPS, check_clip, draws_videos, film_strips, frames_of, save_clip
from ardistill.families import Condition
from ardistill.files import check_target, whole_file
from ardistill.files.pixels import to_rgb
from ardistill.progress import bar
from ardistill.student import Student, check_whole, sample
from ardistill.teacher import Teacher
from ardistill.trajectories import distinct_prompts


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
    mixed_precision: str = "auto",
    fps: int = 16,
) -> None:
    """Draw a student's samples into a PNG grid, ten per row, or into an ``.npz`` file for ADM's evaluation suite.

    Videos go into a clip, or as film strips into the PNG, or with their frames into the archive.

    Args:
        student: Draws.
        teacher: Encodes conditions and decodes latents.
        path: File to write: ``.png``, or ``.npz`` with ``arr_0``, bytes (count, h, w, 3), as ADM's evaluator.py reads,
            of videos (count, f, h, w, 3); ``.gif`` or ``.mp4`` for videos.
        count: Number of images or videos.
        seed: Seed of the noise.
        class_labels: Classes to draw, repeated in turn; all classes if not given.
        prompts: Prompts to draw, repeated in turn, for a text-to-image teacher.
        guidance_scale: For a student that takes the guidance scale as input; the middle of its range if not given.
        batch_size: Images drawn at once.
        device: Where student and VAE are moved; where the student is if not given.
        mixed_precision: What the student computes in, as for ``ardistill.student.sample``.
        fps: Frames per second of a clip.

    Raises:
        ValueError: ``count`` is below 1, the student draws a part of the path alone, the condition is not of the
            teacher's kind, the guidance scale is outside of the student's range, or the file cannot be written.
    """
    if count < 1:
        raise ValueError(f"expected 1 image or more, got {count}")
    check_target(path, [*PICTURES, ".npz", *(CLIPS if draws_videos(teacher) else ())])
    check_clip(path)
    check_whole(student.config)
    student.config.check_guidance(guidance_scale)
    scale = student.config.guidance_scale if guidance_scale is None else guidance_scale
    where = resolve_device(device, student.device)
    asked = _asked(teacher, class_labels, prompts)[:count]
    if not teacher.takes_text:
        teacher.check_condition({"class_labels": torch.tensor(asked, device="cpu")})
    student.to(where).eval()
    teacher.move_vae(where)
    conditions = _conditions(teacher, asked, count, batch_size, where)
    batches = _images(student, teacher, conditions, scale, seed, mixed_precision)
    total = -(-count // batch_size)
    drawn = bar(batches, total=total, desc="sample", disable=total == 1)
    if str(path).endswith(".npz"):
        _save_archive(path, count, drawn)
        return
    images, heads = torch.cat(list(drawn)), asked if teacher.takes_text else [f"class {x}" for x in asked]
    if Path(path).suffix in CLIPS:
        save_clip(images, path, fps)
    elif draws_videos(teacher):
        rows, columns = film_strips({"student": images}, [heads[i % len(heads)] for i in range(count)])
        sample_grid(rows, path, columns)
    else:
        _save_grid(path, images, heads)


def _asked(teacher: Teacher, class_labels: Sequence[int] | None, prompts: Sequence[str] | None) -> list[Any]:
    """Prompts or classes to draw, each once.

    Raises:
        ValueError: The teacher takes the other kind, or there are no prompts.
    """
    name = teacher.name or "the teacher"
    if not teacher.takes_text:
        if prompts:
            raise ValueError(f"{name} takes class labels, not prompts")
        return list(class_labels or range(teacher.num_classes))
    if class_labels or prompts is None or not len(prompts):
        raise ValueError(f"{name} takes prompts, not class labels: give it some")
    distinct_prompts(prompts)
    return list(prompts)


def _conditions(
    teacher: Teacher, asked: Sequence[Any], count: int, batch_size: int, device: torch.device
) -> Iterator[Condition]:
    """Conditions for prompts or classes, repeated in turn, batch by batch.

    Prompts are encoded eight batches at a time, not all at once: an embedding takes megabytes.
    """
    longest, ahead = teacher.text.longest_prompt(asked) if teacher.takes_text else None, 8 * batch_size
    for first in range(0, count, ahead):
        rows = [asked[i % len(asked)] for i in range(first, min(first + ahead, count))]
        table = (
            teacher.encode(rows, device=device, longest=longest)
            if teacher.takes_text
            else {"class_labels": torch.tensor(rows, device="cpu")}
        )
        teacher.check_condition(table)
        for at in range(0, len(rows), batch_size):
            yield {name: value[at : at + batch_size] for name, value in table.items()}


def _images(
    student: Student,
    teacher: Teacher,
    conditions: Iterable[Condition],
    guidance_scale: float,
    seed: int,
    mixed_precision: str,
) -> Iterator[Tensor]:
    """Images in [-1, 1], (b, c, h, w), or videos, (b, c, f, h, w), for each batch of conditions."""
    generator = torch.Generator().manual_seed(seed)
    for condition in conditions:
        rows = len(next(iter(condition.values())))
        condition["guidance"] = torch.full((rows,), float(guidance_scale), dtype=torch.float32, device="cpu")
        noise = torch.randn(rows, *teacher.sample_shape, generator=generator, dtype=torch.float32, device="cpu")
        yield teacher.decode(sample(student, noise, condition, mixed_precision)[:, -1], frames=True)


def _save_grid(path: str | Path, images: Tensor, heads: Sequence[str], width: int = 10) -> None:
    """Write images, (n, c, h, w), as a grid with a head above each; ``heads`` are repeated in turn."""
    count = len(images)
    width = min(count, width)
    blank = -count % width
    padded = torch.cat([images, images.new_ones(blank, *images.shape[1:])])
    grid = {str(first): padded[first : first + width] for first in range(0, count, width)}
    sample_grid(grid, path, [heads[i % len(heads)] for i in range(count)] + [""] * blank)


def _save_archive(path: str | Path, count: int, batches: Iterable[Tensor]) -> None:
    """Write images as ADM's suite reads them, batch by batch: 50,000 images as floats would not fit in memory."""
    with (
        whole_file(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        for number, images in enumerate(batches):
            pixels = to_rgb(frames_of(images))
            pixels = pixels.unflatten(0, (len(images), -1)) if images.ndim == 5 else pixels
            if number == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *pixels.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(pixels.numpy().tobytes())
