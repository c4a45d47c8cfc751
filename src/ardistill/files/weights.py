"""Tensors in safetensors files, written whole, and the fingerprint that identifies a set of weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ardistill.files.whole import whole_file


def weight_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and float32 values of tensors, taken one after the other in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().float().contiguous()
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_PIECE = 1 << 23
"""Values of a file that are read, converted and hashed together."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of floating-point values in a safetensors file."""


def file_fingerprint(files: Sequence[Path], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """`weight_fingerprint` of the tensors in safetensors files, piece by piece, in little memory whatever their size.

    A thread reads and converts the next piece while one is hashed.

    Args:
        files: The files.
        shapes: Shape of each tensor that they are to hold, by its name.

    Returns:
        The fingerprint; None if the files hold other tensors, or are not such files.
    """
    found = [entry for path in files for entry in _entries(path)]
    if len(found) != len(shapes) or {name: shape for name, shape, *_ in found} != dict(shapes):
        return None
    if any(dtype not in _DTYPES for _, _, dtype, *_ in found):
        return None
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as reader:
        for name, shape, dtype, path, first in sorted(found):
            digest.update(f"{name}{shape}".encode())
            pieces = _pieces(path, first, math.prod(shape), _DTYPES[dtype])
            ahead = reader.submit(next, pieces, None)
            while (piece := ahead.result()) is not None:
                ahead = reader.submit(next, pieces, None)
                digest.update(piece.numpy().data)
    return digest.hexdigest()


def _entries(path: Path) -> Iterator[tuple[str, tuple[int, ...], str, Path, int]]:
    """Name, shape and type of each tensor of a safetensors file, with the path and the place of its first byte."""
    if path.suffix != ".safetensors":
        return
    with path.open("rb") as file:
        start = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start))
    for name, facts in header.items():
        if name != "__metadata__":
            yield name, tuple(facts["shape"]), facts["dtype"], path, 8 + start + facts["data_offsets"][0]


def _pieces(path: Path, first: int, count: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The values of a tensor in a file, in float32, in order."""
    with path.open("rb") as file:
        file.seek(first)
        for at in range(0, count, _PIECE):
            raw = bytearray(min(_PIECE, count - at) * dtype.itemsize)
            if file.readinto(raw) != len(raw):
                raise ValueError(f"{path} is cut; download or save it again")
            yield torch.frombuffer(raw, dtype=dtype).float()


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Publish a safetensors file once all of it is on disk.

    Args:
        tensors: Its content.
        path: Where it is written.
        metadata: Entries of its header beside ``format``.

    Raises:
        OSError: It cannot be written; an earlier file of that name is unchanged.
    """
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: It is missing, cut or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing, cut or damaged ({error}); write it again, from its run") from error
