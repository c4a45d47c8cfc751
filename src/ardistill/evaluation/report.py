"""Tables of a comparison as text, Markdown and a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ardistill.files import write_whole

COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "fd": ("FD\n↓", "{:.3f}".format),
    "fd_to_teacher": ("FD to\nteacher\n↓", "{:.3f}".format),
    "kid": ("KID\n↓", "{:.5f}".format),
    "precision": ("precision\n↑", "{:.3f}".format),
    "recall": ("recall\n↑", "{:.3f}".format),
    "accuracy": ("accuracy\n↑", "{:.3f}".format),
    "adherence": ("adherence\n↑", "{:.3f}".format),
    "clip_score": ("CLIP\nscore\n↑", "{:.2f}".format),
    "preference": ("preference\n↑", "{:.2f}".format),
    "feature_distance_to_teacher": ("distance\nto teacher\n↓", "{:.3f}".format),
    "feature_distance_median": ("median\n↓", "{:.3f}".format),
    "feature_distance_trimmed_mean": ("trimmed\nmean\n↓", "{:.3f}".format),
    "flipped": ("flipped\n↓", "{:.1%}".format),
    "nfe": ("NFE", "{:g}".format),
    "macs_per_image": ("MACs\nper image", lambda macs: f"{macs / 1e6:,.1f} M"),
    "ms_per_image": ("ms per\nimage", "{:.2f}".format),
    "seeds": ("seeds", "{:g}".format),
}
"""Key of a row -> head of its column, with an arrow in the direction of better values, and format."""


def arm_label(arm: str) -> str:
    """An arm's name in tables and pictures: ``step distillation`` for ``step_distillation``, ``ARD`` for ``ard``."""
    return arm.upper() if arm in ("ard", "kd") else arm.replace("_", " ")


def _cell(row: Mapping[str, Any], key: str) -> str:
    """A value as text, ``-`` if it is missing."""
    value = row.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, (list, tuple)):  # a list of seeds instead of their number
        return ", ".join(map(str, value)) or "-"
    return COLUMNS[key][1](value)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The head, then one line per arm; columns without any value are left out."""
    for row in rows:
        unknown = set(row) - set(COLUMNS) - {"arm"}
        if "arm" not in row or unknown:
            raise ValueError(f"expected rows with 'arm' and any of {', '.join(COLUMNS)}; got {', '.join(row)}")
    keys = [key for key in COLUMNS if any(_cell(row, key) != "-" for row in rows)]
    return [["arm", *(COLUMNS[key][0] for key in keys)]] + [
        [arm_label(row["arm"]), *(_cell(row, key) for key in keys)] for row in rows
    ]


def format_table(rows: Sequence[Mapping[str, Any]], markdown: bool = False) -> str:
    """The comparison as a table for the terminal, or in Markdown.

    Args:
        rows: One mapping per arm: ``arm`` (its name) and any keys of `COLUMNS`. A missing value, None or NaN is shown
            as ``-``; a column without any value is left out. MACs (a count) and milliseconds are per image.
        markdown: Whether to write Markdown.

    Raises:
        ValueError: A row has no ``arm`` or an unknown key.
    """
    head, *lines = _cells(rows)
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


def _html_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """An HTML table from the cells of a head and of lines."""
    head, *others = ([html.escape(cell).replace("\n", "<br>") for cell in line] for line in lines)
    body = ['<div class="table"><table><thead><tr>', *(f'<th scope="col">{cell}</th>' for cell in head)]
    body += ["</tr></thead><tbody>", *("<tr>" + "".join(f"<td>{x}</td>" for x in line) + "</tr>" for line in others)]
    return [*body, "</tbody></table></div>"]


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6168; --rule: #d9dce0; --page: #ffffff; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a2a9b1; --rule: #3a3f45; --page: #17191c; --band: #202328; } }
body { margin: 0 auto; max-width: 84rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.15rem; line-height: 1.25; margin-top: 2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
tbody tr:nth-child(even) { background: var(--band); }
figure { margin: 2rem 0 0; }
figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .5rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
li { margin: .35rem 0; }
"""


def write_report(
    path: str | Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    pictures: Mapping[str, str | Path] | None = None,
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> None:
    """Write one HTML page that contains the tables, notes and pictures and needs no other file.

    Args:
        path: HTML file to write.
        title: Title of the page.
        rows: One mapping per arm, as for `format_table`.
        notes: Sentences below the table, such as how two arms compare.
        pictures: Caption -> PNG file.
        tables: Heading -> head and lines of a further table, below the notes.

    Raises:
        ValueError: A row has no ``arm`` or an unknown key.
        FileNotFoundError: A picture is missing.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *_html_table(_cells(rows))]
    if notes:
        body += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in notes), "</ul>"]
    for heading, lines in (tables or {}).items():
        body += [f"<h2>{html.escape(heading)}</h2>", *_html_table(lines)]
    for caption, picture in (pictures or {}).items():
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        text = html.escape(caption)
        image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
        body += [f"<figure><figcaption>{text}</figcaption>{image}</figure>"]
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        *body,
        "</body></html>\n",
    ]
    write_whole(Path(path), "\n".join(page).encode())
