"""Embeddings of the prompts that a recording's trajectories use: encoded part by part, mapped when they are read.

A part is a file with the embeddings of consecutive prompts, whose numbers are in its name. The last part ends with the
last used prompt, so that a growing recording adds parts and changes none. A single part of all prompts is called
``conditions.safetensors``. Each part is published whole: an interrupted encoding goes on with the next part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ardistill.devices import resolve_device
from ardistill.families import Condition
from ardistill.files import SEAL, Store, check_seal, seal
from ardistill.progress import bar as progress_bar
from ardistill.teacher import Teacher, pad_tokens
from ardistill.trajectories.last_used import LastUsed
from ardistill.trajectories.manifest import CONDITIONS, PROMPTS, Manifest
from ardistill.trajectories.sharing import choose

PART = 64
"""Prompts of a part (0.2 GB for SD3.5 in 16 bits): a multiple of the number that is encoded at once."""
_HEAD = 1 << 14
"""Bytes at the beginning of a part that hold its header: a name, a dtype and a shape for each of a few tensors."""
_REMEDY = "delete it and run the same record command, which makes it again"


@dataclass(frozen=True)
class Part:
    """A file with the embeddings of prompts ``first`` to ``last`` - 1."""

    name: str
    first: int
    last: int


def _part(first: int, last: int, total: int) -> Part:
    name = CONDITIONS if (first, last) == (0, total) else f"conditions-{first:08d}-{last:08d}.safetensors"
    return Part(name, first, last)


def num_used(manifest: Manifest) -> int:
    """Number of distinct prompts that the trajectories use: trajectory i has prompt i modulo their number."""
    return min(manifest.num_conditions, manifest.num_trajectories) if manifest.prompts else 0


def find_parts(names: Sequence[str] | dict[str, int], manifest: Manifest) -> tuple[list[Part], list[Part]]:
    """Determine which parts are present and which are missing, in order; together they hold each used prompt once.

    Args:
        names: Names of the files in the store.
        manifest: The recording's manifest.

    Returns:
        Present parts and missing parts.
    """
    there: dict[int, Part] = {}
    for name in names:
        found = re.fullmatch(r"conditions-(\d{8})-(\d{8})\.safetensors", name)
        first, last = map(int, found.groups()) if found else (0, manifest.num_conditions if name == CONDITIONS else 0)
        if first < last <= manifest.num_conditions and (first not in there or last > there[first].last):
            there[first] = Part(name, first, last)
    present, missing, at, used = [], [], 0, num_used(manifest)
    while at < used:
        if at in there:
            present.append(there[at])
            at = there[at].last
        else:
            last = min([at + PART, used, *(first for first in there if first > at)])
            missing.append(_part(at, last, manifest.num_conditions))
            at = last
    return present, missing


def publish_conditions(
    store: Store,
    manifest: Manifest,
    teacher: Teacher,
    prompts: Sequence[str],
    device: torch.device | str | None,
    progress: bool = True,
) -> None:
    """Encode the used prompts whose embeddings are missing, and publish them part by part.

    Any number of processes may do so at a time: each takes its part of the work first, then helps the others.

    Args:
        store: The recording's store.
        manifest: The recording's manifest.
        teacher: The teacher, which has the text encoders.
        prompts: All distinct prompts.
        device: Where the text encoders run; the teacher's device if None.
        progress: Show a bar.

    Raises:
        ValueError: An embedding is not finite, or the store cannot be written.
    """
    if not store.exists(PROMPTS):
        store.publish(PROMPTS, json.dumps(list(prompts), ensure_ascii=False, indent=0).encode())
    missing = find_parts(store.sizes(), manifest)[1]
    if not missing:
        return
    used = num_used(manifest)
    longest = teacher.text.longest_prompt(prompts)
    teacher.text.warn_of_cut_prompts(prompts[:used])
    dtype = torch.float16 if manifest.dtype == "float16" else None
    with (
        teacher.text.on(resolve_device(device, teacher.device)),
        progress_bar(total=used, desc="encode prompts", unit="prompt", disable=not progress) as bar,
    ):
        while missing:
            part = choose(missing, lambda part: part.first // PART)
            some = prompts[part.first : part.last]
            rows = teacher.encode(some, device=device, longest=longest, dtype=None, first=part.first)
            store.publish(part.name, _sealed(_stored(rows, dtype, part)))
            missing = find_parts(store.sizes(), manifest)[1]
            bar.update(used - sum(x.last - x.first for x in missing) - bar.n)


def read_prompts(store: Store, manifest: Manifest) -> list[str]:
    """Read the distinct prompts of a recording; empty for class labels.

    Raises:
        ValueError: They are missing, or not the ones that were recorded.
    """
    if not manifest.prompts:
        return []
    where, raw = store.where(PROMPTS), bytes(store.read(PROMPTS))
    try:
        found = json.loads(raw)
        intact = hashlib.sha256(json.dumps(found).encode()).hexdigest() == manifest.prompts
    except ValueError:
        intact = False
    if not intact:
        raise ValueError(
            f"{where} does not hold the prompts that were recorded; delete it and all files conditions*, record again"
        )
    return list(found)


def _stored(rows: Condition, dtype: torch.dtype | None, part: Part) -> Condition:
    """Convert rows to what is stored: embeddings of 32 bits in ``dtype``, if that is given.

    Raises:
        ValueError: An embedding is not finite, or too large for ``dtype``.
    """
    found = {name: x.to(dtype) if dtype and x.dtype == torch.float32 else x for name, x in rows.items()}
    for name, value in found.items():
        if value.is_floating_point() and not value.isfinite().all():
            what = "are not finite" if not rows[name].isfinite().all() else f"do not fit {dtype}: record in float32"
            raise ValueError(
                f"{name} of prompts {part.first} to {part.last - 1} {what}; run the text encoders in a type in which "
                "nothing overflows"
            )
    return {name: value.contiguous() for name, value in found.items()}


def _sealed(rows: Condition) -> bytes:
    return seal(safetensors.torch.save(rows, metadata={"seal": SEAL}))


def read_part(store: Store, part: Part) -> Condition:
    """Read and check a part's embeddings; those of a local store are mapped.

    Raises:
        ValueError: The part is missing, damaged, or has the wrong number of rows.
    """
    where, raw = store.where(part.name), store.read(part.name)
    check_seal(raw, where)
    try:
        rows = safetensors.torch.load(bytes(raw)) if store.folder is None else safetensors.torch.load_file(where)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{where} cannot be read ({error}); {_REMEDY}") from error
    if not rows or any(len(value) != part.last - part.first for value in rows.values()):
        raise ValueError(f"{where}: expected {part.last - part.first} rows; {_REMEDY}")
    return rows


class ConditionTable:
    """Embeddings of a recording's prompts, one row per prompt; parts are opened when they are needed.

    Args:
        store: The recording's store.
        manifest: The manifest of a recording with prompts.
        keep: Number of parts that are kept open; if not given, 1,024 of a folder, which are mapped, and 64 of a URL,
            which are in memory.

    Raises:
        ValueError: A part is missing.
    """

    def __init__(self, store: Store, manifest: Manifest, keep: int | None = None) -> None:
        self.store = store
        self._parts, missing = find_parts(store.sizes(), manifest)
        if missing:
            where = store.where(missing[0].name)
            raise ValueError(f"{where} is missing; run the same record command again, it makes what is missing")
        self._starts = torch.tensor([part.first for part in self._parts], device="cpu")
        self._opened = LastUsed(self._open, keep or (64 if store.folder is None else 1024))
        self._tokens: dict[str, int] | None = None

    def _open(self, index: int) -> Condition:
        return read_part(self.store, self._parts[index])

    def _longest(self) -> dict[str, int]:
        """Number of tokens of the longest prompt, for each tensor that has tokens, from the headers of all parts."""
        if self._tokens is None:
            if len(self._parts) == 1:
                shapes = [{name: tuple(x.shape) for name, x in self._opened(0).items()}]
            else:
                heads = self.store.read_heads([part.name for part in self._parts], _HEAD)
                shapes = [_shapes(x, self.store.where(part.name)) for x, part in zip(heads, self._parts, strict=True)]
            tokens = [{name: shape[1] for name, shape in found.items() if len(shape) > 1} for found in shapes]
            lengths = {name: max(found.get(name, 0) for found in tokens) for name in tokens[0]}
            if any(found != lengths for found in tokens) and not any("mask" in name for name in lengths):
                raise ValueError(
                    f"{self.store}: prompts were encoded to different lengths without a mask; record again"
                )
            self._tokens = lengths
        return self._tokens

    def begin(self, numbers: Tensor) -> None:
        """Begin to read the parts of some prompts, (n,), from a remote store, if not more are needed than are kept."""
        places = (torch.searchsorted(self._starts, numbers, right=True) - 1).unique().tolist()
        if self.store.folder is None and len(places) <= self._opened.keep:
            for index in places:
                self._opened.begin(index)

    def rows(self, numbers: Tensor) -> Condition:
        """Embeddings of prompts, one row each, in float32, padded to the longest prompt of the recording.

        Args:
            numbers: Numbers of the prompts, (n,), n of 1 or more.

        Raises:
            ValueError: A part is damaged.
        """
        self.begin(numbers)
        places = torch.searchsorted(self._starts, numbers, right=True) - 1
        found: Condition = {}
        for index in places.unique().tolist():
            at = torch.nonzero(places == index).flatten()
            for name, value in self._opened(index).items():
                taken = value[numbers[at] - self._parts[index].first]
                taken = taken.float() if taken.is_floating_point() else taken
                if name in (tokens := self._longest()) and taken.shape[1] < tokens[name]:
                    taken = pad_tokens(taken, tokens[name])
                if name not in found:
                    found[name] = taken.new_empty(len(numbers), *taken.shape[1:])
                found[name][at] = taken
        return found


def _shapes(head: bytes, where: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a part's tensors, from the first bytes of its file."""
    try:
        size = int.from_bytes(head[:8], "little")
        if not 0 < size <= _HEAD - 8:
            raise ValueError(f"its header has {size} bytes")
        found = json.loads(head[8 : 8 + size])
        return {name: tuple(map(int, x["shape"])) for name, x in found.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} cannot be read ({error}); {_REMEDY}") from error


def open_conditions(store: Store, manifest: Manifest) -> ConditionTable | None:
    """Open the embeddings of a recording's prompts; None for class labels.

    Raises:
        ValueError: A part is missing.
    """
    return ConditionTable(store, manifest) if manifest.prompts else None


def look_up(table: ConditionTable | None, labels: Tensor, guidance: Tensor) -> Condition:
    """The condition of some trajectories, guidance scale included.

    Args:
        table: Embeddings of the prompts; None for class labels.
        labels: Class, or number of the prompt, of each row, (n,).
        guidance: Guidance scale of each row, (n,).
    """
    rows = {"class_labels": labels} if table is None else table.rows(labels)
    return rows | {"guidance": guidance}
