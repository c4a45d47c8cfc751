"""Real images as latents with their conditions, encoded once: what a discriminator compares with."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ardistill.families import Condition
from ardistill.files import check_target, weight_fingerprint, whole_file
from ardistill.files.images import ImageReader, check_headers, find_images, named, to_pixels
from ardistill.progress import bar
from ardistill.teacher import Teacher
from ardistill.training.labels import ClassNames, match_classes, read_id2label
from ardistill.trajectories import COLUMNS, checked_texts, choose_column, column_of, load_dataset, read_rows

_LOG = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files of a folder that name its images (``file_name``) with their captions or labels."""


@dataclass(frozen=True)
class _Source:
    """Images that are not read yet, and what each is of."""

    images: Sequence[Path | bytes]
    values: Sequence[Any]
    """Captions, or classes."""
    labels: dict[str, Any] = field(default_factory=dict)
    """How the classes were found, for the file."""

    def first(self, limit: int | None) -> _Source:
        return _Source(self.images[:limit], self.values[:limit], self.labels)


def encode_images(
    source: str, teacher: Teacher, path: str | Path, *, limit: int | None = None, batch_size: int = 16
) -> int:
    """Encode labelled or captioned images by the teacher's VAE and text encoders into one file.

    A folder has a subfolder per class (subfolders within it are of the same class), or a file ``metadata.jsonl``,
    ``.csv`` or ``.parquet`` with the columns ``file_name`` and ``label`` or ``prompt``, ``text`` or ``caption``. Which
    class a name stands for is decided by `ardistill.training.labels.match_classes`, logged, and kept in the file.

    Args:
        source: A folder of images; or the Hub id of a data set with a column ``image`` and ``label`` or ``prompt``,
            ``text`` or ``caption``, split train.
        teacher: Its ``sample_shape`` says the size; images are scaled and cut to it around their middle.
        path: safetensors file to write.
        limit: Only so many first images, in the order of their paths or rows.
        batch_size: Images encoded at once.

    Returns:
        Number of images.

    Raises:
        ValueError: The source cannot be read, lacks what the teacher is conditioned on, or has labels that it lacks;
            or latents are not finite.
    """
    for name, value in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"expected a {name} of 1 image or more, got {value}; leave it out for all images")
    check_target(path, [".safetensors"])
    found = (_of_folder(Path(source), teacher) if Path(source).is_dir() else _of_data_set(source, teacher)).first(limit)
    check_headers([image for image in found.images if isinstance(image, Path)])
    if teacher.takes_text:
        teacher.say_cut_prompts(list(found.values))
    condition = (
        teacher.encode(list(found.values))
        if teacher.takes_text
        else {"class_labels": torch.tensor(found.values, device="cpu")}
    )
    teacher.check_condition(condition)
    _check_finite(condition, source, "embeddings of captions")
    reader, latents = ImageReader(), []
    for first in bar(range(0, len(found.images), batch_size), desc="encode", unit="batch"):
        names = [
            str(image) if isinstance(image, Path) else f"{source}, row {first + i}"
            for i, image in enumerate(found.images[first : first + batch_size])
        ]
        images = [
            _to_size(reader, image, name, teacher)
            for image, name in zip(found.images[first : first + batch_size], names, strict=True)
        ]
        latents.append(teacher.encode_images(to_pixels(images)))
        _check_finite({"latents": latents[-1]}, f"{names[0]} and what follows", "latents")
    facts = {"vae": _encoder_of(teacher), "labels": json.dumps(found.labels)}
    save_real(path, torch.cat(latents), condition, facts)
    return len(found.images)


def _check_finite(tensors: Mapping[str, Tensor], where: str, what: str) -> None:
    if any(not value.isfinite().all() for value in tensors.values() if value.is_floating_point()):
        raise ValueError(f"{where}: {what} are not finite; load the teacher in float32, in which nothing overflows")


def _of_folder(folder: Path, teacher: Teacher) -> _Source:
    """Images of a folder, with the captions or classes that its metadata or subfolders say."""
    paths = find_images(folder, METADATA)
    tables = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"{folder}: expected one file of metadata, found {named([x.name for x in tables])}; keep one")
    if tables:
        rows = read_rows(tables[0])
        columns = list(dict.fromkeys(key for row in rows for key in (row if isinstance(row, dict) else ())))
        if teacher.takes_text or "label" in columns:
            return _of_metadata(folder, tables[0], rows, paths, teacher)
    if teacher.takes_text:
        raise ValueError(
            f"{folder}: expected columns image and {' or '.join(COLUMNS)}, found no captions; add metadata.jsonl with "
            'a line {"file_name": "1.png", "prompt": "a cat"} for each image'
        )
    inside = [path.relative_to(folder).parts for path in paths]
    names = sorted({parts[0] for parts in inside if len(parts) > 1})
    if lone := [parts[0] for parts in inside if len(parts) == 1]:
        raise ValueError(
            f"{folder}: expected a subfolder per class, found images beside {'them' if names else 'none'} "
            f"({named(lone, 3)}); move each into the folder of its class, 0 to {teacher.num_classes - 1}"
        )
    bare = sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name[0] != "." and x.name not in names)
    if bare:
        _LOG.warning("%s: no images in the folders %s", folder, named(bare))
    classes = _classes(folder, names, teacher)
    return _Source(paths, [classes.classes[parts[0]] for parts in inside], asdict(classes))


def _classes(source: Any, names: Sequence[str], teacher: Teacher, in_order: bool = False) -> ClassNames:
    id2label = read_id2label(teacher.companions.get("id2label"))
    try:
        found = match_classes(names, teacher.num_classes, id2label, in_order=in_order)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    _LOG.warning("%s: %s", source, found.describe(id2label))
    return found


def _of_metadata(folder: Path, table: Path, rows: list[Any], paths: list[Path], teacher: Teacher) -> _Source:
    """Images that a file of metadata names, each of its rows one."""
    names = column_of(str(table), rows, ("file_name",))
    images = [folder / str(name) for name in names]
    known = set(paths)
    if lost := [str(name) for name, image in zip(names, images, strict=True) if image not in known]:
        raise ValueError(
            f"{table}: {len(lost)} of {len(names)} rows name no image in {folder}, such as {named(lost, 3)}; add the "
            "images or take out the rows"
        )
    if left := sorted(path.relative_to(folder) for path in known.difference(images)):
        _LOG.warning("%s: %d images have no row in %s, left out: %s", folder, len(left), table.name, named(left))
    if teacher.takes_text:
        return _Source(images, checked_texts(str(table), column_of(str(table), rows, COLUMNS)))
    labels, mapping = _labels(table, column_of(str(table), rows, ("label",)), teacher)
    return _Source(images, labels, mapping)


def _labels(source: Any, values: Sequence[Any], teacher: Teacher) -> tuple[list[int], dict[str, Any]]:
    """Classes of a column of numbers or names."""
    for number, value in enumerate(values, start=1):
        if not isinstance(value, int | str) or isinstance(value, bool) or value == "":
            raise ValueError(f"{source}, row {number}: expected a class's number or name, got {value!r}; mend the row")
    classes = _classes(source, sorted({str(value) for value in values}), teacher)
    return [classes.classes[str(value)] for value in values], asdict(classes)


class _Stored:
    """The images of a data set, as they are stored there."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Stored(self.rows.select(range(*index.indices(len(self.rows)))))
        stored = self.rows[index]["image"]
        return Path(stored["path"]) if stored["bytes"] is None else stored["bytes"]

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))


def _of_data_set(source: str, teacher: Teacher) -> _Source:
    """A data set of the Hub; its images are decoded by our own reader."""
    if Path(source).is_file():
        raise ValueError(f"{source} is a file; expected a folder of images, or the id of a data set: give one of them")
    try:
        rows = load_dataset(source)
    except ValueError as error:
        raise ValueError(f"{source} is no folder of images: {error}") from error
    import datasets

    wanted, there = COLUMNS if teacher.takes_text else ("label",), rows.column_names
    found = [name for name in there if name.casefold() in wanted]
    if "image" not in there or not isinstance(rows.features["image"], datasets.Image) or not found:
        raise ValueError(
            f"{source}: expected columns image and {' or '.join(wanted)}, found {named(there, 20)}; rename them"
        )
    column = choose_column(source, there, wanted)
    stored = _Stored(rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False)))
    values = list(rows[column])
    if teacher.takes_text:
        return _Source(stored, checked_texts(source, values))  # type: ignore[arg-type]
    names = getattr(rows.features[column], "names", None)
    if names is None:
        labels, mapping = _labels(source, values, teacher)
        return _Source(stored, labels, mapping)  # type: ignore[arg-type]
    if unlabelled := sum(value is None or value < 0 for value in values):
        raise ValueError(f"{source}: {unlabelled} rows have no label; choose a data set whose split train has them all")
    classes = _classes(source, names, teacher, in_order=True)
    labels = [classes.classes[names[value]] for value in values]
    return _Source(stored, labels, asdict(classes))  # type: ignore[arg-type]


def _to_size(reader: ImageReader, source: Path | bytes, name: str, teacher: Teacher) -> Image.Image:
    """An image scaled and cut to the teacher's size, grey or in colour as the teacher draws."""
    factor = teacher.pixels_per_latent
    height, width = (n * factor for n in teacher.sample_shape[-2:])
    image, grey = reader.read(source, name), teacher.image_channels == 1
    if grey and image.mode != "L":
        reader.say_once("grey", "%s has colour, the teacher draws in grey: it is made grey", name)
    image = image.convert("L" if grey else "RGB")
    scale = max(width / image.width, height / image.height)
    image = image.resize(
        (max(round(image.width * scale), width), max(round(image.height * scale), height)), Image.Resampling.LANCZOS
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _encoder_of(teacher: Teacher) -> str:
    """Identity of what makes a teacher's latents: of its VAE's weights and scale, or that there is none."""
    vae = teacher.companions.get("vae")
    if vae is None:
        return "pixels"
    keys = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    scale = json.dumps({key: vae.config.get(key) for key in keys})
    return hashlib.sha256(f"{weight_fingerprint(vae.state_dict())}{scale}".encode()).hexdigest()


def save_real(
    path: str | Path, latents: Tensor, condition: Condition, described: Mapping[str, str] | None = None
) -> None:
    """Write latents (n, c, h, w) and their condition, one row each, and what describes them."""
    tensors = {f"condition.{name}": value.contiguous() for name, value in condition.items()}
    tensors |= {"latents": latents.contiguous()}
    facts = {**(described or {}), "shape": json.dumps(list(latents.shape[1:])), "sha256": weight_fingerprint(tensors)}
    with whole_file(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=facts)


def load_real(path: str | Path, teacher: Teacher) -> tuple[Tensor, Condition]:
    """Read what ``save_real`` wrote.

    Raises:
        ValueError: There is no such file, it does not fit the teacher, its VAE was another, or values are not finite.
    """
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = file.metadata() or {}
        expected = facts.get("sha256")
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
    _check_finite({"latents": latents, **condition}, str(path), "latents or embeddings")
    ours = _encoder_of(teacher)
    if "pixels" not in (ours, facts.get("vae", ours)) and facts.get("vae", ours) != ours:
        raise ValueError(
            f"{path} was encoded by another VAE than that of {teacher.name or 'the teacher'}; make it again with "
            "`ardistill encode` and this teacher"
        )
    return latents, condition
