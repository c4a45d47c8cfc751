"""Prompts and other columns of text from files and data sets."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ardistill.errors import cache_variable
from ardistill.files.images import named

_LOG = logging.getLogger(__name__)

COLUMNS = ("prompt", "text", "caption")
"""Names of columns that are read as prompts, in upper or lower case."""

Rows = list[dict[str, Any]]


def load_prompts(source: str) -> list[str]:
    """Read prompts from a file or a data set, in its order; they may repeat.

    Args:
        source: A file: ``.txt`` (one per line), ``.jsonl`` or ``.ndjson`` (a string or an object per line), ``.json``
            (a list of either), ``.csv``, ``.tsv`` or ``.parquet``; or the Hub id of a data set, of which the split
            train is read. Of several columns, the one called prompt, text or caption is used; another one is named
            after a colon, ``prompts.csv:Description``. The embedded scene world generates 4,096 prompts:
            ``zoo/scenes`` are training captions, ``zoo/scenes/seen`` and the other splits evaluation prompts.

    Raises:
        ValueError: The source has another format or cannot be read, its column is ambiguous, or a prompt is missing.
    """
    if source == "zoo/scenes" or source.startswith("zoo/scenes/"):
        from ardistill.zoo.scenes.data import caption, prompts

        split = source.removeprefix("zoo/scenes").removeprefix("/")
        return [x.text for x in (prompts(split, 4096) if split else (caption(0, i)[1] for i in range(4096)))]
    name, column = _split_column(source)
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() == ".txt":
            if column:
                raise ValueError(f"{name} is a text file, which has no column {column!r}; leave it out")
            return checked_texts(name, [line.strip() for line in read_text(path).split("\n") if line.strip()])
        rows = read_rows(path)
        if rows and all(isinstance(row, str) for row in rows):
            return checked_texts(name, rows)
        return checked_texts(name, column_of(name, rows, COLUMNS, column))
    if path.suffix.lower() in (".txt", *READERS) or name.count("/") != 1:
        raise ValueError(
            f"expected prompts in {name}: a text or JSONL file, or the id of a data set, or a .json, .csv, .tsv or "
            ".parquet file; give the path of one that is there"
        )
    rows = load_dataset(name)
    chosen = choose_column(name, rows.column_names, COLUMNS, column)
    return checked_texts(name, list(rows[chosen]))


def _split_column(source: str) -> tuple[str, str | None]:
    """Split a source into file or data set and the column after the colon, if there is one."""
    name, colon, column = source.rpartition(":")
    if Path(source).is_file() or not colon or "/" in column or "\\" in column:
        return source, None
    return name, column


def load_dataset(name: str) -> Any:
    """Load the split train of a data set on the Hub.

    Raises:
        ValueError: The package ``datasets`` is missing, or the data set cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{name} is no file; to read it as a data set: pip install 'ardistill[text]' ({error})"
        ) from error
    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:  # datasets raises many kinds
        if cache_variable(error) is not None:  # the cache is at fault, not the data set
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name} cannot be read as a data set, split train: {reason}; give a file, or the id of a data set"
        ) from error


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark; lines end in ``\\n``.

    Raises:
        ValueError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error}); save it as UTF-8") from error


def _jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected one JSON object or string a line ({error}); save a list of them "
                    "as .json"
                ) from error
    return rows


def _json(path: Path) -> list[Any]:
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); save one object a line as .jsonl") from error
    if not isinstance(found, list):
        what = f"an object with the keys {named(list(found))}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{path}: expected a list of strings or of objects, got {what}; save the list alone")
    return found


def _delimited(path: Path, delimiter: str) -> Rows:
    """Read the rows of a table whose first line names its columns."""
    text = read_text(path)
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read ({error}); put quotes around whole fields, and double inner ones"
        ) from (error)
    filled = [(number, line) for number, line in enumerate(lines, start=1) if any(cell.strip() for cell in line)]
    if not filled:
        return []
    header = [cell.strip() for cell in filled[0][1]]
    if twice := sorted({cell for cell in header if header.count(cell) > 1}):
        raise ValueError(f"{path}: expected columns of different names, found {named(twice)} twice; rename one")
    for number, line in filled[1:]:
        if len(line) != len(header):
            raise ValueError(
                f"{path}, row {number}: expected {len(header)} fields as the first line has ({named(header)}), got "
                f"{len(line)}; put quotes around fields that contain the separator"
            )
    return [dict(zip(header, line, strict=True)) for _, line in filled[1:]]


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        others = {
            field.name: field.type
            for field in file.schema_arrow
            if pa.types.is_nested(field.type) or pa.types.is_binary(field.type)
        }
        if others:
            skipped = [f"{name} ({kind})" for name, kind in others.items()]
            _LOG.warning("%s: columns that hold neither text nor numbers are left out: %s", path, named(skipped))
        return file.read(columns=[name for name in file.schema_arrow.names if name not in others]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); write or download it again") from error


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": lambda path: _delimited(path, ","),
    ".tsv": lambda path: _delimited(path, "\t"),
    ".parquet": _parquet,
}
"""Suffix in lower case -> function that reads the rows of such a file."""


def read_rows(path: Path) -> list[Any]:
    """Read the rows of a file in the format that its suffix names.

    Returns:
        One dict per row; or strings, from JSON that holds strings.

    Raises:
        ValueError: The format is unknown, the file cannot be read, or it mixes dicts and strings.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"{path}: expected a file of a known kind (.txt, {', '.join(READERS)}), got {path.suffix or 'no suffix'}; "
            "name it after what it holds"
        )
    rows = read(path)
    kinds = {type(row) for row in rows}
    if not kinds <= {dict} and not kinds <= {str}:
        others = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{path}: expected objects alone or strings alone, got {others}; write all rows alike")
    return rows


def choose_column(source: str, there: Sequence[str], wanted: Sequence[str], column: str | None = None) -> str:
    """Choose a column of a table.

    Args:
        source: Name of the table, for messages.
        there: Names of its columns.
        wanted: Names to look for, in lower case; a column's name may have capitals.
        column: Name of the column, if it is known.

    Raises:
        ValueError: ``column`` does not exist, or not exactly one column has a wanted name.
    """
    if column is not None:
        if column not in there:
            raise ValueError(f"{source}: expected a column {column}, found {named(list(there), 20)}; name one of them")
        return column
    found = [name for name in there if name.strip().casefold() in wanted]
    if len(found) != 1:
        what = f"found {named(list(there), 20) or 'none'}" if not found else f"found {' and '.join(found)}"
        raise ValueError(
            f"{source}: expected a column {' or '.join(wanted)}, one alone, {what}; name the right one, as in "
            f"{Path(source).name}:{(found or list(there) or ['prompt'])[0]}"
        )
    return found[0]


def column_of(source: str, rows: Rows, wanted: Sequence[str], column: str | None = None) -> list[Any]:
    """The values of the column that `choose_column` chooses; None for a row that lacks it."""
    if not rows:
        return []
    there = list(dict.fromkeys(key for row in rows for key in row))
    chosen = choose_column(source, there, wanted, column)
    return [row.get(chosen) for row in rows]


def checked_texts(source: str, found: Sequence[Any]) -> list[str]:
    """Check that values are texts, and return them.

    Raises:
        ValueError: There are none, or one is empty or not a text.
    """
    if not found:
        raise ValueError(f"{source} holds no prompts; give a file with one or more")
    for number, text in enumerate(found, start=1):
        if not isinstance(text, str):
            raise ValueError(f"{source}, prompt {number}: expected text, got {text!r}; mend the row or take it out")
        if not text.strip():
            raise ValueError(f"{source}, prompt {number}: expected text, got an empty one; mend the row or take it out")
    check_characters(source, found)
    return list(found)


def check_characters(source: str, texts: Sequence[str]) -> None:
    """Refuse unpaired surrogates, halves of characters, which JSON accepts where an emoji was cut in two.

    Raises:
        ValueError: A text holds one.
    """
    for number, text in enumerate(texts, start=1):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                f"{source}, prompt {number}: expected whole characters, got half of one in {ascii(text)[:80]}; take it "
                "out of the prompt"
            )


def distinct_prompts(prompts: Sequence[str]) -> list[str]:
    """Remove repeated prompts; the others keep their order.

    Raises:
        ValueError: A single text was given instead of a list, a prompt is not a text, or it holds half a character.
    """
    if isinstance(prompts, str):
        raise ValueError(f"expected a list of prompts, got the text {prompts[:60]!r}; give [{prompts[:60]!r}]")
    distinct = list(dict.fromkeys(prompts))
    for number, text in enumerate(distinct, start=1):
        if not isinstance(text, str):
            raise ValueError(f"prompt {number}: expected text, got {text!r}; give prompts alone")
    check_characters("prompts", distinct)
    return distinct
