"""Fingerprints of weights, computed once: remembered by a fast checksum of the same weights, in memory and on disk."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ardistill.files.seals import check_seal, read_json, sealed_json
from ardistill.files.store import Store
from ardistill.files.weights import weight_fingerprint

LARGE = 1 << 26
"""Bytes of weights from which on the fingerprint is remembered; that of fewer takes a tenth of a second."""
_known: dict[str, str] = {}
"""Checksum of weights -> their fingerprint, of this process."""


def remembered_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """`weight_fingerprint` of the weights, which is looked up if these very weights have been seen before.

    They are recognised by `quick_checksum`, which reads every byte of them where they are, at the speed of the memory.
    Neither a changed file nor weights that were changed after loading, by whatever means, can be taken for others. If
    the cache folder cannot be read or written, each process computes the fingerprint itself.
    """
    size = sum(x.nbytes for x in weights.values())
    if size < LARGE or any(type(x) is not Tensor for x in weights.values()):  # subclasses may hold numbers elsewhere
        return weight_fingerprint(weights)
    checksum = quick_checksum(weights)
    if checksum not in _known:
        _known[checksum] = _read(checksum) or _computed(checksum, weights)
    return _known[checksum]


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


def _computed(checksum: str, weights: Mapping[str, Tensor]) -> str:
    """The fingerprint, computed, and stored where that is possible."""
    fingerprint, folder = weight_fingerprint(weights), _folder()
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
