"""The data sets that the embedded teachers were trained on, for the scripts that make and judge these teachers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ardistill.zoo.emoji.data import CLASS_NAMES as EMOJI_NAMES
from ardistill.zoo.emoji.data import load_emoji
from ardistill.zoo.fashion.data import CLASS_NAMES as FASHION_NAMES
from ardistill.zoo.fashion.data import load_fashion_mnist

CLASS_NAMES = {"fashion": FASHION_NAMES, "emoji": EMOJI_NAMES}
"""Data set -> names of its classes."""
_EMOJI_SPLITS = {"train": (0, 60_000), "test": (1, 10_000)}
"""Split -> seed and number of scenes."""


def load_data(name: str, split: str, data_dir: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Load one split of a data set; both have 60,000 training and 10,000 test images.

    Args:
        name: ``"fashion"`` or ``"emoji"``.
        split: ``"train"`` or ``"test"``.
        data_dir: Folder of the Fashion-MNIST idx files; not needed for emoji, which are rendered.

    Returns:
        Images, float32 in [-1, 1], shape (n, c, h, w), and labels, int64, shape (n, k): the class, then other
        known facts (emoji: the background).

    Raises:
        ValueError: There is no such data set, or ``data_dir`` is missing for Fashion-MNIST.
    """
    if name == "emoji":
        return load_emoji(*_EMOJI_SPLITS[split])
    if name != "fashion":
        raise ValueError(f"unknown data set {name!r}: expected {' or '.join(CLASS_NAMES)}")
    if data_dir is None:
        raise ValueError("Fashion-MNIST is not shipped: expected the folder of its idx files (--data-dir)")
    images, labels = load_fashion_mnist(data_dir, split)
    return images, labels[:, None]
