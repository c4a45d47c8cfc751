"""Tensors in safetensors files that are read and written one at a time, so that no process has to hold all of them."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES
from torch import Tensor
from torch.distributed.tensor import DTensor

from ardistill.files.whole import whole_file

_NAMES = {dtype: name for name, dtype in _TYPES.items()}
"""torch's dtype -> its name in a file's header."""


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some safetensors files by name, each read when it is asked for, whole or in part.

    A file is open only while a tensor of it is read, so that none of its pages stays mapped.

    Args:
        paths: The files; no two of them hold a tensor of the same name.

    Raises:
        ValueError: A file is missing, cut or damaged, or two files have a tensor of the same name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Name of a tensor -> its shape."""
        for path in paths:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118  # not a dict
                    if name in self._paths:
                        raise ValueError(f"{path} and {self._paths[name]} both hold {name}; remove one of them")
                    self._paths[name], self.shapes[name] = path, tuple(file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        """A tensor on the CPU, in the file's dtype."""
        with _opened(self._paths[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy the values of a tensor in place, in the dtype and onto the device of what they are copied to.

        Args:
            name: A name in the files.
            tensor: A tensor of that shape. Of a ``DTensor``, only the part that this process holds is read.
        """
        if not isinstance(tensor, DTensor):
            tensor.copy_(self[name])
            return
        local = tensor.to_local()
        if not local.numel():
            return
        (chunk,) = tensor.__create_chunk_list__()
        part = tuple(slice(first, first + size) for first, size in zip(chunk.offsets, chunk.sizes, strict=True))
        with _opened(self._paths[name]) as file:
            local.copy_(file.get_slice(name)[part])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing, cut or damaged ({error}); write or download it again") from error


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
