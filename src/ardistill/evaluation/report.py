"""The report of a comparison: one self-contained HTML page, for screens of any width, light or dark."""

from __future__ import annotations

import base64
import html
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ardistill.evaluation.headlines import Headline
from ardistill.evaluation.tables import COLUMNS, arm_label, cell, columns_of
from ardistill.files import write_whole
from ardistill.files.pixels import to_pictures

SMALLEST, LARGEST = 96, 192
"""Sides of a sample on the page, in CSS pixels: smaller images are enlarged, every pixel as a square; larger ones are
reduced."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6168; --rule: #d9dce0; --page: #ffffff; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a2a9b1; --rule: #3a3f45; --page: #17191c; --band: #202328; }
  .plot { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen !important; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1.25rem; }
h2 { font-size: 1.15rem; line-height: 1.25; margin: 2.25rem 0 .5rem; }
figure { margin: 2.25rem 0 0; }
figcaption { max-width: 46rem; margin-bottom: .5rem; }
.headlines { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.headlines > div { background: var(--band); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem 1.1rem; }
.headlines strong { display: block; font-size: 2.1rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
.headlines b { display: block; }
.headlines p { margin: .4rem 0 0; color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.figures { width: 100%; font-size: .9rem; }
.figures th, .figures td { padding: .45rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); }
.figures td { white-space: nowrap; }
.figures tbody th { min-width: 6.5rem; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tr > :first-child { position: sticky; left: 0; text-align: left !important; background: var(--page); }
tbody th { color: var(--ink); }
.figures tbody tr:nth-child(even) > * { background: var(--band); }
abbr { text-decoration: underline dotted; text-underline-offset: .2em; cursor: help; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--soft); }
dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0; color: var(--soft); max-width: 46rem; }
li { margin: .35rem 0; max-width: 60rem; }
.samples { border-spacing: 0; }
.samples th { font-size: .8rem; line-height: 1.3; padding: .2rem .4rem; }
.samples thead th { max-width: 12rem; }
.samples tbody th { min-width: 4.5rem; max-width: 7rem; vertical-align: middle; padding-left: 0; }
.samples td { padding: 2px; }
.samples img { display: block; border-radius: 3px; }
.enlarged { image-rendering: pixelated; }
.plot { display: block; width: 100%; max-width: 38rem; height: auto; mix-blend-mode: multiply; }
"""


def write_report(
    path: str | Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    headlines: Sequence[Headline] = (),
    notes: Sequence[str] = (),
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
    plots: Mapping[str, str | Path] | None = None,
    samples: Mapping[str, Tensor] | None = None,
    heads: Sequence[str] = (),
    samples_heading: str = "Samples",
) -> None:
    """Write one HTML page that contains all figures and pictures and needs no other file.

    Args:
        path: HTML file to write.
        title: Title of the page.
        rows: One mapping per arm, as for `format_table`.
        headlines: Numbers that the page opens with.
        notes: Sentences below the table, such as how two arms compare.
        tables: Heading -> head and lines of a further table, below the notes.
        plots: Caption -> PNG file of a plot on white.
        samples: Arm -> its images in [-1, 1], shape (k, c, h, w), c = 1 or 3, the same noise in each arm; or label of a
            video -> its frames.
        heads: Heads of the k columns of samples.
        samples_heading: Heading of the samples.

    Raises:
        ValueError: A row has no ``arm`` or an unknown key.
        FileNotFoundError: A plot is missing.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *_headlines(headlines), *_arms(rows)]
    if notes:
        body += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in notes), "</ul>"]
    for heading, (head, *lines) in (tables or {}).items():
        body += [f"<h2>{html.escape(heading)}</h2>", *_table([html.escape(x) for x in head], lines)]
    if samples:
        body += [f"<h2>{html.escape(samples_heading)}</h2>", *_samples(samples, heads)]
    for caption, picture in (plots or {}).items():
        text, source = html.escape(caption), _data("png", Path(picture).read_bytes())
        body.append(f'<figure><figcaption>{text}</figcaption><img class="plot" alt="" src="{source}"></figure>')
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        *body,
        "</body></html>\n",
    ]
    write_whole(Path(path), "\n".join(page).encode())


def _headlines(headlines: Sequence[Headline]) -> list[str]:
    """The numbers that the page opens with, each with its sentence."""
    if not headlines:
        return []
    cards = []
    for found in headlines:
        figure, name, sentence = map(html.escape, found)
        cards.append(f"<div><strong>{figure}</strong><b>{name}</b><p>{sentence}</p></div>")
    return ['<div class="headlines">', *cards, "</div>", "<h2>All samplers</h2>"]


def _arms(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of arms, and below it what each of its columns means."""
    keys = columns_of(rows)
    heads = []
    for key in keys:
        head, meaning = html.escape(COLUMNS[key].head).replace("\n", "<br>"), html.escape(COLUMNS[key].meaning)
        heads.append(f'<abbr title="{meaning}">{head}</abbr>')
    meanings = [
        f"<dt>{html.escape(COLUMNS[key].head.replace(chr(10), ' '))}</dt><dd>{html.escape(COLUMNS[key].meaning)}</dd>"
        for key in keys
    ]
    return [
        *_table(["arm", *heads], [[arm_label(row["arm"]), *(cell(row, key) for key in keys)] for row in rows]),
        "<details><summary>What the columns mean</summary><dl>",
        *meanings,
        "</dl></details>",
    ]


def _table(heads: Iterable[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table that scrolls by itself where the screen is narrow; heads are HTML, cells of the lines are text."""
    body = ['<div class="scroll"><table class="figures"><thead><tr>', *(f'<th scope="col">{x}</th>' for x in heads)]
    body.append("</tr></thead><tbody>")
    for first, *cells in ([html.escape(x) for x in line] for line in lines):
        body.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{x}</td>" for x in cells) + "</tr>")
    return [*body, "</tbody></table></div>"]


def _samples(samples: Mapping[str, Tensor], heads: Sequence[str]) -> list[str]:
    """A row of images per arm, at a size at which they can be judged."""
    body = ['<div class="scroll"><table class="samples">']
    if heads:
        short = [textwrap.shorten(head, 80, placeholder="...") for head in heads]
        columns = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in short)
        body.append(f"<thead><tr><th></th>{columns}</tr></thead>")
    for arm, images in samples.items():
        cells = "".join(f"<td>{_sample(picture, arm)}</td>" for picture in to_pictures(images))
        body.append(f'<tr><th scope="row">{html.escape(arm)}</th>{cells}</tr>')
    return [*body, "</table></div>"]


def _sample(picture: Image.Image, arm: str) -> str:
    """One image: every pixel as it is if small, reduced if large."""
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST))
    times = math.ceil(SMALLEST / min(picture.size)) if min(picture.size) < SMALLEST else 1
    width, height = (side * times for side in picture.size)
    form = "png" if times > 1 else "webp"  # a small image keeps each pixel's value
    file = io.BytesIO()
    picture.save(file, form, quality=90)
    kind = ' class="enlarged"' if times > 1 else ""
    source = _data(form, file.getvalue())
    return f'<img{kind} alt="{html.escape(arm)}" width="{width}" height="{height}" src="{source}">'


def _data(form: str, content: bytes) -> str:
    """An address that holds a picture itself."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
