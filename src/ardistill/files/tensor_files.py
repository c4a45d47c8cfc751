"""Tensors in safetensors files that are read and written one at a time, so that no process has to hold all of them."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES
from torch import Tensor
from torch.distributed.tensor import DTensor

from ardistill.files.whole import whole_file

_NAMES = {dtype: name for name, dtype in _TYPES.items()}
"""torch's dtype -> its name in a file's header."""


class _Place(NamedTuple):
    """Where the values of a tensor stand."""

    path: Path
    first: int
    """The byte of the file with which they begin."""
    dtype: torch.dtype
    state: tuple[int, int]
    """The file's size and time of change, as its header was read."""


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some safetensors files by name, each read when it is asked for, whole or in part.

    The headers are read once. A file is open only while a tensor of it is read, and none of its pages stays mapped.

    Args:
        paths: The files; no two of them hold a tensor of the same name.

    Raises:
        ValueError: A file is missing, cut or damaged, or two files have a tensor of the same name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, _Place] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Name of a tensor -> its shape."""
        for path in paths:
            for name, shape, place in _header(path):
                if name in self._places:
                    raise ValueError(f"{path} and {self._places[name].path} both hold {name}; remove one of them")
                self._places[name], self.shapes[name] = place, shape

    def __getitem__(self, name: str) -> Tensor:
        """A tensor on the CPU, in the file's dtype."""
        shape = self.shapes[name]
        return self._values(name, 0, math.prod(shape)).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def pieces(self, name: str, size: int) -> Iterator[Tensor]:
        """The values of a tensor in order, on the CPU, at most ``size`` of them together."""
        count = math.prod(self.shapes[name])
        for first in range(0, count, size):
            yield self._values(name, first, min(first + size, count))

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy the values of a tensor in place, in the dtype and onto the device of what they are copied to.

        Args:
            name: A name in the files.
            tensor: A tensor of that shape. Of a ``DTensor``, only the rows that this process holds are read.
        """
        if not isinstance(tensor, DTensor):
            tensor.copy_(self[name])
            return
        local = tensor.to_local()
        if not local.numel():
            return
        (chunk,) = tensor.__create_chunk_list__()
        (row, *offsets), (rows, *sizes), (_, *shape) = chunk.offsets, chunk.sizes, self.shapes[name]
        values = self._values(name, row * math.prod(shape), (row + rows) * math.prod(shape)).view(rows, *shape)
        local.copy_(values[:, *(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))])

    def _values(self, name: str, first: int, last: int) -> Tensor:
        """Some of the values of a tensor, in a row."""
        path, start, dtype, state = self._places[name]
        values = torch.empty(last - first, dtype=dtype, device="cpu")
        raw = values.view(torch.uint8).numpy().data
        try:
            with path.open("rb", buffering=0) as file:
                if _state(file) != state:
                    raise _unreadable(path, "it has changed since its header was read")
                file.seek(start + first * dtype.itemsize)
                at = 0
                while at < len(raw) and (read := file.readinto(raw[at:])):  # at most 2 GiB come at once
                    at += read
        except OSError as error:
            raise _unreadable(path, error) from error
        if at < len(raw):
            raise _unreadable(path, f"{name} ends after {at} of {len(raw)} bytes")
        return values


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...], _Place]]:
    """The name, shape and place of each tensor of a file."""
    try:
        with safe_open(path, "pt"):  # which checks that the header is sound, and that it describes all of the file
            pass
        with path.open("rb") as file:
            state = _state(file)
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    for name, facts in entries.items():
        if name == "__metadata__":
            continue
        dtype = _TYPES.get(facts["dtype"])
        if dtype is None:
            raise ValueError(f"{name} in {path} has the type {facts['dtype']}, which torch lacks; convert it first")
        yield name, tuple(facts["shape"]), _Place(path, 8 + size + facts["data_offsets"][0], dtype, state)


def _state(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _unreadable(path: Path, error: object) -> ValueError:
    return ValueError(f"{path} is missing, cut or damaged ({error}); write or download it again")


def write_in_turn(like: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Publish a safetensors file of tensors that are made one after the other, each let go once it is written.

    Args:
        like: Every tensor's dtype and shape, of which the header is made; their values are not read.
        tensors: Names and tensors on the CPU, in the order of ``like``.
        path: Where it is written.

    Raises:
        OSError: It cannot be written; an earlier file of that name is unchanged.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, x in like.items():
        end = at + x.numel() * x.element_size()
        header[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [at, end]}
        at = end
    described = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    described += b" " * (-len(described) % 8)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(described)) + described)
        each = iter(tensors)  # not zip, which holds a tensor until it has the next one
        for expected, shaped in like.items():
            name, x = next(each)
            assert (name, x.dtype, x.shape) == (expected, shaped.dtype, shaped.shape)
            file.write(x.contiguous().view(-1).view(torch.uint8).numpy().data)
            del x
        assert next(each, None) is None
