"""Tensors in safetensors files, written whole, and the fingerprint that identifies a set of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ardistill.files.tensor_files import TensorFiles
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


def file_fingerprint(files: TensorFiles) -> str:
    """`weight_fingerprint` of the tensors in safetensors files, piece by piece, in little memory whatever their size.

    A thread reads and converts the next piece while one is hashed.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as reader:
        for name, shape in sorted(files.shapes.items()):
            digest.update(f"{name}{shape}".encode())
            pieces = map(Tensor.float, files.pieces(name, _PIECE))
            ahead = reader.submit(next, pieces, None)
            while (piece := ahead.result()) is not None:
                ahead = reader.submit(next, pieces, None)
                digest.update(piece.numpy().data)
    return digest.hexdigest()


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
