"""Encode real images into latents with their conditions, once, for a discriminator."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from ardistill.families import Condition
from ardistill.files import check_target
from ardistill.files.images import ImageReader, check_headers, to_pixels
from ardistill.progress import bar
from ardistill.teacher import Teacher
from ardistill.training.labelled_images import LabelledImages, labelled_images
from ardistill.training.real_images import check_finite, encoder_identity, save_real


def encode(source: str, teacher: Teacher, path: str | Path, *, limit: int | None = None, batch_size: int = 16) -> int:
    """Encode labelled or captioned images with the teacher's VAE and text encoders into one file.

    A folder has a subfolder per class (with images at any depth), or a file ``metadata.jsonl``, ``.csv`` or
    ``.parquet`` with the columns ``file_name`` and ``label``, or ``file_name`` and ``prompt``, ``text`` or ``caption``.
    `ardistill.training.labels.match_classes` decides which class a name stands for; the decision is logged and kept in
    the file.

    Args:
        source: A folder of images, or the Hub id of a data set, of which the split train is read. The data set has a
            column ``image``, and a column ``label``, ``prompt``, ``text`` or ``caption``.
        teacher: Its ``sample_shape`` gives the size, to which images are scaled and centre-cropped.
        path: safetensors file to write.
        limit: Number of images to encode, the first ones by path or row; all if not given.
        batch_size: Images encoded at once.

    Returns:
        Number of images.

    Raises:
        ValueError: The source cannot be read, lacks labels or captions that the teacher needs, or has labels of other
            classes; or latents are not finite.
    """
    for name, value in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"expected a {name} of 1 image or more, got {value}; leave it out for all images")
    check_target(path, [".safetensors"])
    found = labelled_images(source, teacher).first(limit)
    check_headers([image for image in found.images if isinstance(image, Path)])
    condition = _encode_values(found, teacher, source)
    reader, latents = ImageReader(), []
    for first in bar(range(0, len(found.images), batch_size), desc="encode", unit="batch"):
        batch = found.images[first : first + batch_size]
        names = [
            str(image) if isinstance(image, Path) else f"{source}, row {first + i}" for i, image in enumerate(batch)
        ]
        images = [_to_size(reader, image, name, teacher) for image, name in zip(batch, names, strict=True)]
        latents.append(teacher.encode_images(to_pixels(images)))
        check_finite({"latents": latents[-1]}, f"{names[0]} and what follows", "latents")
    facts = {"vae": encoder_identity(teacher), "labels": json.dumps(found.labels)}
    save_real(path, torch.cat(latents), condition, facts)
    return len(found.images)


def _encode_values(found: LabelledImages, teacher: Teacher, source: str) -> Condition:
    """Condition of each image: embeddings of its caption, or its class."""
    if teacher.takes_text:
        teacher.text.warn_of_cut_prompts(list(found.values))
        condition = teacher.encode(list(found.values))
    else:
        condition = {"class_labels": torch.tensor(found.values, device="cpu")}
    teacher.check_condition(condition)
    check_finite(condition, source, "embeddings of captions")
    return condition


def _to_size(reader: ImageReader, source: Path | bytes, name: str, teacher: Teacher) -> Image.Image:
    """Scale an image to cover the teacher's size and crop its centre, in greyscale or RGB like the teacher's images."""
    factor = teacher.pixels_per_latent
    height, width = (n * factor for n in teacher.sample_shape[-2:])
    image, grey = reader.read(source, name), teacher.image_channels == 1
    if grey and image.mode != "L":
        reader.warn_once("grey", "%s has colour and the teacher draws in grey: it is converted to grey", name)
    image = image.convert("L" if grey else "RGB")
    scale = max(width / image.width, height / image.height)
    image = image.resize(
        (max(round(image.width * scale), width), max(round(image.height * scale), height)), Image.Resampling.LANCZOS
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
