"""Fashion-MNIST (Zalando SE, MIT): 60,000 + 10,000 grey 28x28 images of 10 balanced classes.

The data set is not shipped. Only the scripts that make the embedded teacher read it; to use the teacher it is not
needed.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ardistill.files.pixels import from_bytes

CLASS_NAMES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file, gzipped or not, as an unsigned byte array.

    Raises:
        FileNotFoundError: Neither ``path`` nor ``path`` + ``.gz`` exists.
        ValueError: The file is cut, or is not an idx file of unsigned bytes.
    """
    packed = path.with_name(path.name + ".gz")
    if packed.is_file():
        raw = gzip.decompress(packed.read_bytes())
    elif path.is_file():
        raw = path.read_bytes()
    else:
        raise FileNotFoundError(f"expected {path} or {packed}; get Fashion-MNIST through torchvision or your system")
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an unsigned byte idx file (header {raw[:4]!r})")
    num_axes = raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw, ">i4", count=num_axes, offset=4))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * num_axes)
    if data.size != int(np.prod(shape)):
        raise ValueError(f"{path}: expected {int(np.prod(shape))} bytes of data for shape {shape}, got {data.size}")
    return data.reshape(shape)


def load_fashion_mnist(data_dir: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Load one split of Fashion-MNIST.

    Args:
        data_dir: Folder of the four idx files, such as torchvision's ``FashionMNIST/raw``.
        split: ``"train"`` (60,000) or ``"test"`` (10,000).

    Returns:
        Images, float32 in [-1, 1], shape (n, 1, 28, 28), and labels, int64, shape (n,).
    """
    prefix = _PREFIX[split]
    images = read_idx(Path(data_dir) / f"{prefix}-images-idx3-ubyte")
    labels = read_idx(Path(data_dir) / f"{prefix}-labels-idx1-ubyte")
    return from_bytes(torch.from_numpy(images.copy())[:, None]), torch.from_numpy(labels.copy()).long()
