"""Real images with their classes or captions, from a folder or a data set of the Hub; images are not read yet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ardistill.files.images import find_images, named
from ardistill.teacher import Teacher
from ardistill.training.labels import ClassNames, match_classes, read_id2label
from ardistill.trajectories import COLUMNS, checked_texts, choose_column, column_of, load_dataset, read_rows

_LOG = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files of a folder that list its images (``file_name``) with their captions or labels."""


@dataclass(frozen=True)
class LabelledImages:
    """Images that are not read yet, with the class or caption of each."""

    images: Sequence[Path | bytes]
    """Paths, or the bytes of image files."""
    values: Sequence[Any]
    """Caption or class of each image."""
    labels: dict[str, Any] = field(default_factory=dict)
    """The names' classes and the rule that found them (`ClassNames`), kept in the encoded file; empty for captions."""

    def first(self, limit: int | None) -> LabelledImages:
        """The first ``limit`` images; all for None."""
        return LabelledImages(self.images[:limit], self.values[:limit], self.labels)


def labelled_images(source: str, teacher: Teacher) -> LabelledImages:
    """Find the images of a folder or a data set, with the classes or captions that the teacher is conditioned on.

    Args:
        source: Folder, or Hub id of a data set.
        teacher: Teacher whose kind of condition and classes the images have to have.

    Raises:
        ValueError: The source cannot be read, lacks labels or captions, or has labels of other classes.
    """
    return _of_folder(Path(source), teacher) if Path(source).is_dir() else _of_data_set(source, teacher)


def _of_folder(folder: Path, teacher: Teacher) -> LabelledImages:
    """Images of a folder, with the captions or classes in its metadata, or the classes that its subfolders name."""
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
    return _of_subfolders(folder, paths, teacher)


def _of_subfolders(folder: Path, paths: list[Path], teacher: Teacher) -> LabelledImages:
    """Images in subfolders that name their classes."""
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
    return LabelledImages(paths, [classes.classes[parts[0]] for parts in inside], asdict(classes))


def _of_metadata(folder: Path, table: Path, rows: list[Any], paths: list[Path], teacher: Teacher) -> LabelledImages:
    """Images that the rows of a metadata file name."""
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
        return LabelledImages(images, checked_texts(str(table), column_of(str(table), rows, COLUMNS)))
    labels, mapping = _labels(table, column_of(str(table), rows, ("label",)), teacher)
    return LabelledImages(images, labels, mapping)


def _classes(source: Any, names: Sequence[str], teacher: Teacher, in_order: bool = False) -> ClassNames:
    """Classes that the names stand for, logged.

    Raises:
        ValueError: It is not certain which classes they are; the message begins with the source.
    """
    id2label = read_id2label(teacher.companions.get("id2label"))
    try:
        found = match_classes(names, teacher.num_classes, id2label, in_order=in_order)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    _LOG.warning("%s: %s", source, found.describe(id2label))
    return found


def _labels(source: Any, values: Sequence[Any], teacher: Teacher) -> tuple[list[int], dict[str, Any]]:
    """Classes of a column of numbers or names, and how they were found."""
    for number, value in enumerate(values, start=1):
        if not isinstance(value, int | str) or isinstance(value, bool) or value == "":
            raise ValueError(f"{source}, row {number}: expected a class's number or name, got {value!r}; mend the row")
    classes = _classes(source, sorted({str(value) for value in values}), teacher)
    return [classes.classes[str(value)] for value in values], asdict(classes)


class _StoredImages(Sequence[Path | bytes]):
    """Images of a data set as it stores them: bytes of image files, or their paths.

    Args:
        rows: Data set with a column ``image`` that is not decoded.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _StoredImages(self.rows.select(range(*index.indices(len(self.rows)))))
        stored = self.rows[index]["image"]
        return Path(stored["path"]) if stored["bytes"] is None else stored["bytes"]


def _of_data_set(source: str, teacher: Teacher) -> LabelledImages:
    """Images of a Hub data set, left undecoded so that all images are decoded by the same reader."""
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
    stored = _StoredImages(rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False)))
    values = list(rows[column])
    if teacher.takes_text:
        return LabelledImages(stored, checked_texts(source, values))
    names = getattr(rows.features[column], "names", None)
    if names is None:
        labels, mapping = _labels(source, values, teacher)
        return LabelledImages(stored, labels, mapping)
    if unlabelled := sum(value is None or value < 0 for value in values):
        raise ValueError(f"{source}: {unlabelled} rows have no label; choose a data set whose split train has them all")
    classes = _classes(source, names, teacher, in_order=True)
    labels = [classes.classes[names[value]] for value in values]
    return LabelledImages(stored, labels, asdict(classes))
