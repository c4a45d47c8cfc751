"""The metrics of a comparison as columns, and tables of them as text and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column of a table of arms."""

    head: str
    """Name of the metric in lines, with an arrow in the direction of better values."""
    text: Callable[[float], str]
    """Formats a value."""
    meaning: str
    """One sentence: what the value is, and which values are better."""


COLUMNS: dict[str, Column] = {
    "fd": Column(
        "FD\n↓",
        "{:.3f}".format,
        "Fréchet distance between the arm's images and the real images of the reference, in the features of the "
        "network that the notes name; lower is better.",
    ),
    "fd_to_teacher": Column(
        "FD to\nteacher\n↓",
        "{:.3f}".format,
        "Fréchet distance between the arm's images and the teacher's from the same noise; lower is nearer to the "
        "teacher.",
    ),
    "kid": Column(
        "KID\n↓",
        "{:.5f}".format,
        "Kernel distance to real images, an unbiased estimate in the same features; lower is better.",
    ),
    "precision": Column(
        "precision\n↑",
        "{:.3f}".format,
        "Share of the arm's images that lie among real ones in the features: quality; higher is better.",
    ),
    "recall": Column(
        "recall\n↑",
        "{:.3f}".format,
        "Share of real images that lie among the arm's in the features: variety; higher is better.",
    ),
    "accuracy": Column(
        "accuracy\n↑",
        "{:.3f}".format,
        "Share of images that a classifier assigns to the class that they were drawn for; higher is better.",
    ),
    "adherence": Column(
        "adherence\n↑",
        "{:.3f}".format,
        "Share of images that show what their prompt says and nothing else, as judged by a detector; higher is better.",
    ),
    "clip_score": Column(
        "CLIP\nscore\n↑",
        "{:.2f}".format,
        "Similarity of image and prompt by a CLIP model, averaged over the images; higher is better.",
    ),
    "preference": Column(
        "preference\n↑",
        "{:.2f}".format,
        "Score of a model of human preference for the image given its prompt, averaged over the images; higher is "
        "better.",
    ),
    "feature_distance_to_teacher": Column(
        "distance\nto teacher\n↓",
        "{:.3f}".format,
        "Euclidean distance in the features between an image and the teacher's from the same noise, averaged over the "
        "images; lower is nearer to the teacher.",
    ),
    "feature_distance_median": Column(
        "median\n↓", "{:.3f}".format, "Median of these distances to the teacher over the images; lower is nearer."
    ),
    "feature_distance_trimmed_mean": Column(
        "trimmed\nmean\n↓",
        "{:.3f}".format,
        "Mean of these distances without the smallest and the largest tenth; lower is nearer to the teacher.",
    ),
    "flipped": Column(
        "flipped\n↓",
        "{:.1%}".format,
        "Share of images that a classifier assigns to another class than the teacher's from the same noise; lower is "
        "better.",
    ),
    "motion": Column(
        "motion",
        "{:.2f}".format,
        "Mean difference of consecutive frames, as a share of the teacher's; 1 moves as much, 0 is a still.",
    ),
    "nfe": Column(
        "NFE",
        "{:g}".format,
        "Evaluations of the network for one image; a guided step takes two. Fewer is cheaper.",
    ),
    "macs_per_image": Column(
        "MACs\nper image",
        lambda macs: f"{macs / 1e6:,.1f} M",
        "Multiply-accumulate operations for one image, in millions; fewer is cheaper.",
    ),
    "ms_per_image": Column(
        "ms per\nimage",
        "{:.2f}".format,
        "Milliseconds for one image, drawn in a batch on the machine of this comparison; fewer is faster.",
    ),
    "seeds": Column("seeds", "{:g}".format, "Number of trainings that the figures are of, or their seeds."),
}
"""Key of a row -> its column."""


def arm_label(arm: str) -> str:
    """An arm's name in tables and pictures: ``step distillation`` for ``step_distillation``, ``ARD`` for ``ard``."""
    return arm.upper() if arm in ("ard", "kd") else arm.replace("_", " ")


def cell(row: Mapping[str, Any], key: str) -> str:
    """A row's value of a column as text, ``-`` if it is missing."""
    value = row.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, (list, tuple)):  # a list of seeds instead of their number
        return ", ".join(map(str, value)) or "-"
    return COLUMNS[key].text(value)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the columns in which a row has a value.

    Raises:
        ValueError: A row has no ``arm`` or an unknown key.
    """
    for row in rows:
        unknown = set(row) - set(COLUMNS) - {"arm"}
        if "arm" not in row or unknown:
            raise ValueError(f"expected rows with 'arm' and any of {', '.join(COLUMNS)}; got {', '.join(row)}")
    return [key for key in COLUMNS if any(cell(row, key) != "-" for row in rows)]


def format_table(rows: Sequence[Mapping[str, Any]], markdown: bool = False) -> str:
    """The comparison as a table for the terminal, or in Markdown.

    Args:
        rows: One mapping per arm: ``arm`` (its name) and any keys of `COLUMNS`. A missing value, None or NaN is shown
            as ``-``; a column without any value is left out. MACs (a count) and milliseconds are per image.
        markdown: Whether to write Markdown.

    Raises:
        ValueError: A row has no ``arm`` or an unknown key.
    """
    keys = columns_of(rows)
    head = ["arm", *(COLUMNS[key].head for key in keys)]
    lines = [[arm_label(row["arm"]), *(cell(row, key) for key in keys)] for row in rows]
    if markdown:
        return markdown_table([[text.replace("\n", " ") for text in head], *lines])
    words = [text.split("\n") for text in head]
    height = max(map(len, words))
    stacked = [list(line) for line in zip(*([""] * (height - len(w)) + w for w in words), strict=True)]
    widths = [max(map(len, column)) for column in zip(*stacked, *lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)])
        for line in stacked + lines
    ]
    return "\n".join([*text[:height], "-" * len(text[0]), *text[height:]])


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table from the cells of a head and of lines."""
    head, *others = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *others])
