"""Embeddings of a recording's prompts: those that its trajectories use, encoded part by part, mapped when read.

A part is a file of consecutive prompts whose name says which; the last one ends where the used prompts end, so that a
recording that grows adds parts and changes none. A single part of all prompts is called ``conditions.safetensors``.
Each part is published whole: an encoding that was killed goes on with the next part.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ardistill.families import Condition
from ardistill.files.store import SEAL, Store, check_seal, seal
from ardistill.progress import bar as progress_bar
from ardistill.teacher.teacher import Teacher, pad_tokens
from ardistill.trajectories.manifest import CONDITIONS, PROMPTS, Manifest

PART = 64
"""Prompts of a part: 0.2 GB of SD3.5's in 16 bits. A multiple of the prompts that are encoded at once."""
_REMEDY = "delete it and run the same record command, which makes it again"


@dataclass(frozen=True)
class Part:
    """A file of the embeddings of prompts ``first`` to ``last`` - 1."""

    name: str
    first: int
    last: int


def _part(first: int, last: int, total: int) -> Part:
    name = CONDITIONS if (first, last) == (0, total) else f"conditions-{first:08d}-{last:08d}.safetensors"
    return Part(name, first, last)


def num_used(manifest: Manifest) -> int:
    """Distinct prompts that the trajectories use: trajectory i has prompt i modulo their number."""
    return min(manifest.num_conditions, manifest.num_trajectories) if manifest.prompts else 0


def find_parts(names: Sequence[str] | dict[str, int], manifest: Manifest) -> tuple[list[Part], list[Part]]:
    """Parts that are there and parts that are missing, in order; together they hold each used prompt once."""
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
    """Encode the prompts that are used and not yet there, and publish them part by part.

    Any number of processes may do so at a time: each takes its own parts first, then helps the others.

    Args:
        store: Of the recording.
        manifest: Of the recording.
        teacher: Whose text encoders.
        prompts: All distinct ones.
        device: Where the text encoders run.
        progress: Show a bar.

    Raises:
        ValueError: An embedding is not finite, or the store cannot be written.
    """
    if not store.exists(PROMPTS):
        store.publish(PROMPTS, json.dumps(list(prompts), ensure_ascii=False, indent=0).encode())
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    missing = find_parts(store.sizes(), manifest)[1]
    if not missing:
        return
    chance, used = random.SystemRandom(), num_used(manifest)
    longest = teacher.longest_prompt(prompts)
    teacher.say_cut_prompts(prompts[:used])
    dtype = torch.float16 if manifest.dtype == "float16" else None
    with (
        teacher.text_encoders(device),
        progress_bar(total=used, desc="encode prompts", unit="prompt", disable=not progress) as bar,
    ):
        while missing:
            own = [part for part in missing if world_size > 1 and part.first // PART % world_size == rank]
            part = own[0] if own else chance.choice(missing)
            some = prompts[part.first : part.last]
            rows = teacher.encode(some, device=device, longest=longest, dtype=None, first=part.first)
            store.publish(part.name, _sealed(_stored(rows, dtype, part)))
            missing = find_parts(store.sizes(), manifest)[1]
            bar.update(used - sum(x.last - x.first for x in missing) - bar.n)


def _stored(rows: Condition, dtype: torch.dtype | None, part: Part) -> Condition:
    """Rows as they are stored: embeddings of 32 bits in ``dtype``, if that is given."""
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
    """A part's embeddings, checked, mapped where the store is local.

    Raises:
        ValueError: It is missing, broken, or of another number of prompts.
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
    """Embeddings of the prompts of a recording, one row per prompt; parts are opened as they are needed.

    Args:
        store: Of the recording.
        manifest: Of the recording; it has prompts.
        keep: Parts that are held open, the last ones used: 1,024 of a folder, mapped; 64 of a URL, in memory.

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
        self._keep = keep or (64 if store.folder is None else 1024)
        self._open: OrderedDict[int, Condition] = OrderedDict()
        self._tokens: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are started anew: each opens and checks its own parts."""
        return self.__dict__ | {"_open": OrderedDict()}

    def _load(self, index: int) -> Condition:
        found = self._open.pop(index, None)  # each call here is atomic: threads may load twice, and lose nothing
        if found is None:
            found = read_part(self.store, self._parts[index])
        self._open[index] = found
        while len(self._open) > self._keep:
            with contextlib.suppress(KeyError):
                self._open.popitem(last=False)
        return found

    def _longest(self) -> dict[str, int]:
        """Tokens of the longest prompt, for each tensor that has tokens, from the heads of all files."""
        if self._tokens is None:
            if len(self._parts) == 1:
                shapes = [{name: tuple(x.shape) for name, x in self._load(0).items()}]
            else:
                shapes = [_shapes(self.store, part) for part in self._parts]
            tokens = [{name: shape[1] for name, shape in found.items() if len(shape) > 1} for found in shapes]
            lengths = {name: max(found.get(name, 0) for found in tokens) for name in tokens[0]}
            if any(found != lengths for found in tokens) and not any("mask" in name for name in lengths):
                raise ValueError(
                    f"{self.store}: prompts were encoded to different lengths without a mask; record again"
                )
            self._tokens = lengths
        return self._tokens

    def rows(self, numbers: Tensor) -> Condition:
        """Embeddings of prompts by their numbers, one row each, in float32, padded to the longest prompt of all.

        Args:
            numbers: (n,), n of 1 or more.
        """
        places = torch.searchsorted(self._starts, numbers, right=True) - 1
        found: Condition = {}
        for index in places.unique().tolist():
            at = torch.nonzero(places == index).flatten()
            for name, value in self._load(index).items():
                taken = value[numbers[at] - self._parts[index].first]
                taken = taken.float() if taken.is_floating_point() else taken
                if name in (tokens := self._longest()) and taken.shape[1] < tokens[name]:
                    taken = pad_tokens(taken, tokens[name])
                if name not in found:
                    found[name] = taken.new_empty(len(numbers), *taken.shape[1:])
                found[name][at] = taken
        return found


def _shapes(store: Store, part: Part) -> dict[str, tuple[int, ...]]:
    """Shapes of a part's tensors, from the head of its file."""
    where = store.where(part.name)
    try:
        size = int.from_bytes(store.read_head(part.name, 8), "little")
        if not 0 < size < 1 << 20:
            raise ValueError(f"its head has {size} bytes")
        head = json.loads(store.read_head(part.name, 8 + size)[8:])
        return {name: tuple(map(int, x["shape"])) for name, x in head.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} cannot be read ({error}); {_REMEDY}") from error


def open_conditions(store: Store, manifest: Manifest) -> ConditionTable | None:
    """The table of a recording's prompts; None where it has class labels.

    Raises:
        ValueError: A part is missing.
    """
    return ConditionTable(store, manifest) if manifest.prompts else None


def look_up(table: ConditionTable | None, labels: Tensor, guidance: Tensor) -> Condition:
    """Rows of the table of conditions, and the guidance; without a table the labels are the condition."""
    rows = {"class_labels": labels} if table is None else table.rows(labels)
    return rows | {"guidance": guidance}
