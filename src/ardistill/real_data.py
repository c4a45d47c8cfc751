"""Real images as latents with their conditions, encoded once: what a discriminator compares with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ardistill.errors import cache_variable
from ardistill.families import Condition
from ardistill.progress import bar
from ardistill.store import check_target, whole_file
from ardistill.teacher import Teacher, weight_fingerprint

CAPTIONS = ("prompt", "text", "caption")
"""Columns that a caption may stand in."""


def encode_images(
    source: str, teacher: Teacher, path: str | Path, *, limit: int | None = None, batch_size: int = 16
) -> int:
    """Encode labelled or captioned images by the teacher's VAE and text encoders into one file.

    Args:
        source: A folder of images, read as the ``datasets`` package reads an ``imagefolder`` (a subfolder per class,
            or ``metadata.jsonl`` with a caption for each file); or the id of a data set with a column ``image`` and
            ``label`` or ``prompt``, ``text`` or ``caption``. Split train.
        teacher: Its ``sample_shape`` says the size; images are scaled and cut to it around their middle.
        path: safetensors file to write.
        limit: Only so many first images.
        batch_size: Images encoded at once.

    Returns:
        Number of images.

    Raises:
        ValueError: The source cannot be read, lacks what the teacher is conditioned on, or has labels that it lacks.
    """
    check_target(path)
    for name, value in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"expected a {name} of 1 image or more, got {value}; leave it out for all images")
    try:
        import datasets
    except ImportError as error:
        raise ValueError("images are read with the package datasets: pip install 'ardistill[text]'") from error
    try:
        folder = {"path": "imagefolder", "data_dir": source} if Path(source).is_dir() else {"path": source}
        rows = datasets.load_dataset(**folder, split="train")
    except Exception as error:  # of many kinds
        if cache_variable(error) is not None:  # it is not the images that are at fault
            raise
        raise ValueError(
            f"{source} cannot be read as a folder of images or a data set, split train: {error}"
        ) from error
    wanted = CAPTIONS if teacher.takes_text else ("label",)
    column = next((name for name in wanted if name in rows.column_names), None)
    if "image" not in rows.column_names or column is None:
        raise ValueError(f"{source}: expected columns image and {' or '.join(wanted)}, found {rows.column_names}")
    rows = rows.select(range(min(len(rows), limit or len(rows))))
    found: Any = list(rows[column])
    condition = teacher.encode(found) if teacher.takes_text else {"class_labels": torch.tensor(found)}
    teacher.check_condition(condition)
    latents = []
    for first in bar(range(0, len(rows), batch_size), desc="encode", unit="batch"):
        images = [_to_size(image, teacher) for image in rows[first : first + batch_size]["image"]]
        latents.append(teacher.encode_images(torch.stack(images)))
    save_real(path, torch.cat(latents), condition)
    return len(rows)


def _to_size(image: Image.Image, teacher: Teacher) -> Tensor:
    """Pixels in [-1, 1], (c, h, w), of an image scaled and cut to the teacher's size."""
    factor = teacher.pixels_per_latent
    height, width = (n * factor for n in teacher.sample_shape[-2:])
    grey = teacher.companions.get("vae") is None and teacher.sample_shape[0] == 1
    image = image.convert("L" if grey else "RGB")
    scale = max(width / image.width, height / image.height)
    image = image.resize(
        (max(round(image.width * scale), width), max(round(image.height * scale), height)), Image.Resampling.LANCZOS
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    pixels = pixels[..., None] if grey else pixels
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def save_real(path: str | Path, latents: Tensor, condition: Condition) -> None:
    """Write latents (n, c, h, w) and their condition, one row each."""
    tensors = {f"condition.{name}": value.contiguous() for name, value in condition.items()}
    tensors |= {"latents": latents.contiguous()}
    facts = {"shape": json.dumps(list(latents.shape[1:])), "sha256": weight_fingerprint(tensors)}
    with whole_file(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=facts)


def load_real(path: str | Path, teacher: Teacher) -> tuple[Tensor, Condition]:
    """Read what ``save_real`` wrote.

    Raises:
        ValueError: There is no such file, or it does not fit the teacher.
    """
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
        if expected is not None and expected != weight_fingerprint(tensors):
            raise ValueError(f"{path} is damaged (its checksum differs); make it again with `ardistill encode`")
        latents = tensors.pop("latents")
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is no file of real latents ({error}); make one with `ardistill encode`") from error
    condition = {name.removeprefix("condition."): value for name, value in tensors.items()}
    if tuple(latents.shape[1:]) != tuple(teacher.sample_shape):
        raise ValueError(f"{path} holds latents {tuple(latents.shape[1:])}, the teacher's are {teacher.sample_shape}")
    if ("class_labels" in condition) == teacher.takes_text:
        raise ValueError(f"{path} holds {sorted(condition)}, which {teacher.name or 'the teacher'} does not take")
    teacher.check_condition(condition)
    return latents, condition
