"""Pictures of a run: a grid of samples, the error per step, and the health of a training with a critic.

Plots are made without pyplot, which would keep global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ardistill.evaluation.tables import arm_label
from ardistill.files import whole_file

PICTURES = (".png", ".jpg", ".webp", ".pdf", ".svg")
"""Suffixes of picture files that can be written; the suffix gives the format."""
EXPOSURE_CURVES = {"free_running": ("on its own states", "-"), "teacher_forced": ("on the teacher's states", "--")}
"""Key of a curve that is drawn -> what each step starts from, and line."""
ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Colours of arms in one plot, which people with any colour vision tell apart (Okabe and Ito)."""
CRITIC_PANELS = {
    "regression loss": {"loss": "against the teacher"},
    "losses beside it": {"g_loss": "student", "d_loss": "discriminator or fake score"},
    "weight of the student's second loss": {"g_weight": "adaptive or fixed"},
    "gradient norm of discriminator or fake score": {"d_gradient_norm": "before clipping"},
    "discriminator tells": {"d_real_accuracy": "real", "d_fake_accuracy": "student's"},
    "diversity (1: as the data)": {"diversity": "spread of features", "recall": "recall"},
}
"""Title of a panel -> key of the log -> label of the curve; the last two are a discriminator's."""
_CELL = 0.8
"""Width of an image in a grid, in inches."""


def sample_grid(rows: Mapping[str, Tensor], path: str | Path, columns: Sequence[str] | None = None) -> None:
    """Save a grid of samples, one labelled row per sampler, the same noise down each column.

    Args:
        rows: Label of a row -> its images in [-1, 1], shape (k, c, h, w), c = 1 or 3; one shape for all rows.
        path: PNG to write.
        columns: Heads of the k columns, such as class names or prompts; or a head for every image, row by row.

    Raises:
        ValueError: There is no row, the shapes differ, or the number of heads is wrong.
    """
    shapes = {label: tuple(images.shape) for label, images in rows.items()}
    shape = next(iter(shapes.values()), ())
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape or len(set(shapes.values())) != 1:
        raise ValueError(f"expected images of one shape (k, 1 or 3, h, w) in every row, got {shapes}")
    count, _, height, width = shape
    if columns is not None and len(columns) not in (count, count * len(rows)):
        raise ValueError(f"expected {count} column heads, got {len(columns)}")

    heads = _wrapped_heads(columns or (), count, len(rows))
    lines = [max((name.count("\n") + 1 for name in head), default=0) for head in heads]
    label_width = 0.12 + 0.095 * max(map(len, rows))  # inches, as all sizes here
    above = [0.17 + 0.13 * n if n else 0.05 if r == 0 else 0.0 for r, n in enumerate(lines)]
    cell_height = _CELL * height / width
    figure_width, figure_height = label_width + _CELL * count, sum(above) + cell_height * len(rows) + 0.05
    figure = Figure(figsize=(figure_width, figure_height), dpi=160, facecolor="white")
    for r, (label, images) in enumerate(rows.items()):
        bottom = (figure_height - sum(above[: r + 1]) - (r + 1) * cell_height) / figure_height
        axes = figure.add_axes(
            (label_width / figure_width, bottom, _CELL * count / figure_width, 0.96 * cell_height / figure_height)
        )
        _draw_row(axes, label, images, heads[r])
    _save(figure, path)


def _wrapped_heads(columns: Sequence[str], count: int, num_rows: int) -> list[list[str]]:
    """The heads above each row, broken into lines; no heads above a row that has none."""
    names = [textwrap.fill(x, 12, max_lines=6, placeholder="...") for x in columns]
    heads = [names[first : first + count] for first in range(0, len(names), count)]
    return heads + [[]] * (num_rows - len(heads))


def _draw_row(axes: Axes, label: str, images: Tensor, heads: Sequence[str]) -> None:
    """One row of a grid: images (k, c, h, w) in a strip, the label to their left, heads above them."""
    count, _, _, width = images.shape
    # (k, c, h, w) -> one strip (h, k w, c), with a thin white gap between images
    padded = torch.nn.functional.pad(images.float().cpu().clamp(-1, 1), (0, max(1, width // 28)), value=1.0)
    strip = ((padded + 1) / 2).permute(2, 0, 3, 1).flatten(1, 2)
    axes.imshow(strip.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.axis("off")
    axes.text(-0.1 / (_CELL * count), 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize=9)
    for i, name in enumerate(heads):
        at = ((i + 0.49) / count, 1.04)
        axes.text(*at, name, transform=axes.transAxes, ha="center", va="bottom", fontsize=7.5)


def exposure_bias_plot(curves: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path) -> None:
    """Save the error per step of all arms in one plot, on a logarithmic scale.

    A colour is an arm. Solid lines are free-running, dashed lines teacher-forced: between the two lies what the errors
    of earlier steps add.

    Args:
        curves: Arm -> what `exposure_bias` returns: errors per step, noisiest first. Zeros are left out of the plot,
            and so is ``teacher_continued``.
        path: PNG to write.

    Raises:
        ValueError: There is no arm, a curve is missing, or the curves of an arm differ in length.
    """
    if not curves:
        raise ValueError("expected one arm or more, got none")
    for arm, named in curves.items():
        given = {name: len(values) for name, values in named.items()}
        if not set(EXPOSURE_CURVES) <= set(named) or len(set(given.values())) != 1 or 0 in given.values():
            raise ValueError(f"{arm}: expected curves of one length, {' and '.join(EXPOSURE_CURVES)}, got {given}")

    figure = Figure(figsize=(4.2, 3.2 + 0.19 * (len(curves) + 2)), dpi=160, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for i, named in enumerate(curves.values()):
        for name, (_, line) in EXPOSURE_CURVES.items():
            steps = range(1, len(named[name]) + 1)
            axes.plot(steps, _positive(named[name]), line, marker="o", **_arm_style(i))
    longest = max(len(values) for named in curves.values() for values in named.values())
    axes.set(xlabel="step", ylabel="error against the teacher", yscale="log", xticks=range(1, longest + 1))
    axes.grid(axis="y", which="both", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_legend(figure, {arm: named["free_running"][-1] for arm, named in curves.items()})
    _save(figure, path)


def _arm_style(i: int) -> dict[str, Any]:
    """Colour and width of the i-th arm; the first, the baseline, is broad so that no equal arm hides it."""
    width = {"linewidth": 5, "markersize": 9, "alpha": 0.45} if i == 0 else {"linewidth": 1.5, "markersize": 4}
    return {"color": ARM_COLOURS[i % len(ARM_COLOURS)], **width}


def _draw_legend(figure: Figure, ends: Mapping[str, float]) -> None:
    """A legend of the arms by colour, with their errors in the last step on their own states, and of the lines."""
    (axes,) = figure.axes
    for i, (arm, end) in enumerate(ends.items()):
        axes.plot([], [], "-", label=f"{arm_label(arm)}: {end:.3g} in the last step", **_arm_style(i))
    for label, line in EXPOSURE_CURVES.values():
        axes.plot([], [], line, color="#333333", label=label)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)


def critic_plot(log: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Save the health of a training with a critic: losses, weight, gradients and, of a discriminator, what it tells.

    Args:
        log: Lines of ``metrics.jsonl``.
        path: PNG to write.
    """
    logged = {key for line in log for key in line}
    panels = {title: curves for title, curves in CRITIC_PANELS.items() if logged & {*curves}}
    columns = 3 if len(panels) > 4 else 2
    figure = Figure(figsize=(14 / 3 * columns, 5.6), dpi=130, facecolor="white")
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(2, columns, place)
        for key, label in curves.items():
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
        axes.set(title=title, xlabel="step")
        if title.startswith(("regression", "weight")):
            axes.set_yscale("log")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    """Write a figure whole, in the format that the suffix gives."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        figure.savefig(file, format=Path(path).suffix[1:] or "png")


def _positive(values: Sequence[float]) -> list[float]:
    """The values, NaN in place of those that a logarithmic scale cannot show."""
    return [value if value > 0 else float("nan") for value in values]
