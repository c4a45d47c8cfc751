"""Fingerprints of weights, computed once, and remembered in memory and on disk.

Weights in memory are recognised by a fast checksum, those in files by the identity of the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ardistill.files.seals import check_seal, read_json, sealed_json
from ardistill.files.store import Store
from ardistill.files.tensor_files import TensorFiles
from ardistill.files.weights import file_fingerprint, weight_fingerprint

LARGE = 1 << 26
"""Bytes of weights from which on the fingerprint is remembered; that of fewer takes a tenth of a second."""
_known: dict[str, str] = {}
"""Checksum of weights, or identity of their files -> their fingerprint, of this process."""


def remembered_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """`weight_fingerprint` of the weights, which is looked up if these very weights have been seen before.

    They are recognised by `quick_checksum`, which reads every byte of them where they are, at the speed of the memory.
    Neither a changed file nor weights that were changed after loading, by whatever means, can be taken for others. If
    the cache folder cannot be read or written, each process computes the fingerprint itself.
    """
    size = sum(x.nbytes for x in weights.values())
    if size < LARGE or any(type(x) is not Tensor for x in weights.values()):  # subclasses may hold numbers elsewhere
        return weight_fingerprint(weights)
    return _remembered(quick_checksum(weights), lambda: weight_fingerprint(weights))


def stored_fingerprint(
    files: Sequence[Path], shapes: Mapping[str, tuple[int, ...]], load: Callable[[], Mapping[str, Tensor]]
) -> str:
    """`weight_fingerprint` of weights in files, whatever type they are loaded in; looked up if the files are known.

    Files are recognised by path, inode, size and times of change.

    Args:
        files: The files, which hold each tensor once.
        shapes: Shape of each tensor that the model has, by its name.
        load: Gives the model's weights in float32, where the files are pickled or name the tensors otherwise.
    """
    stats = [(path.resolve(), path.stat()) for path in files]
    facts = [(str(path), x.st_dev, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for path, x in stats]
    identity = hashlib.sha256(repr((facts, sorted(shapes.items()))).encode()).hexdigest()

    def compute() -> str:
        if all(path.suffix == ".safetensors" for path in files):
            stored = TensorFiles(files)
            if stored.shapes == dict(shapes):
                return file_fingerprint(stored)
        return weight_fingerprint(load())

    return compute() if sum(x.st_size for _, x in stats) < LARGE else _remembered(identity, compute)


def quick_checksum(weights: Mapping[str, Tensor]) -> str:
    """A checksum over the names, dtypes, shapes and bytes of tensors, most of it computed where they are.

    Each tensor's bytes are laid out as a square of 64-bit integers, whose row sums and column sums are hashed. Weights
    that differ, or that only changed places, have other sums, unless somebody makes them collide on purpose.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        if flat.storage_offset() % 8:
            flat = flat.clone()
        side = max(1, math.isqrt(len(flat) // 8))
        whole = len(flat) // 8 // side * side * 8
        square = flat[:whole].view(torch.int64).view(-1, side)
        for part in (square.sum(0), square.sum(1), flat[whole:]):
            digest.update(part.cpu().numpy().data)
    return digest.hexdigest()


def _remembered(checksum: str, compute: Callable[[], str]) -> str:
    """The fingerprint that is known by this checksum, else computed."""
    if checksum not in _known:
        _known[checksum] = _read(checksum) or _computed(checksum, compute)
    return _known[checksum]


def _computed(checksum: str, compute: Callable[[], str]) -> str:
    """The fingerprint, computed, and stored where that is possible."""
    fingerprint, folder = compute(), _folder()
    if folder is not None:
        with contextlib.suppress(ValueError):  # a home that is missing or read-only costs time, and nothing else
            Store(folder).publish(f"{checksum}.json", sealed_json({"fingerprint": fingerprint}))
    return fingerprint


def _read(checksum: str) -> str | None:
    """The stored fingerprint; None if there is none, or none that is whole."""
    folder = _folder()
    path = None if folder is None else folder / f"{checksum}.json"
    try:
        if path is None or not path.is_file():
            return None
        check_seal(path.read_bytes(), str(path))  # which this file always has
        return str(read_json(path)["fingerprint"])
    except (ValueError, OSError, KeyError, TypeError):
        return None


def _folder() -> Path | None:
    """The user's cache folder of fingerprints; None if no home is known."""
    caches = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    return caches / "ardistill" / "fingerprints" if caches.is_absolute() else None
