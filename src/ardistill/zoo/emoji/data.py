"""The emoji world: one of ten nouns on one of six plain backgrounds, 32x32 in colour.

The class is the noun. Background, size, place and mirroring vary within a class and are not part of the condition, but
they are known, because an image is a function of (seed, index). There are 9,960 different images: 10 nouns x 6
backgrounds x 2 mirrorings x 83 squares. The ten pictures are in ``nouns/`` (Noto emoji, Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ardistill.files.pixels import from_bytes

CLASS_NAMES = ("dog", "cat", "apple", "car", "house", "tree", "fish", "star", "tulip", "airplane")
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (45, 45, 55),
    "blue": (140, 195, 250),
    "green": (150, 225, 170),
    "purple": (160, 125, 215),
    "orange": (240, 195, 130),
}
"""Name -> red, green, blue in 0..255."""
IMAGE_SIZE = 32
"""Edge of an image, pixels."""
NOUN_SIZES = (20, 24, 28)
"""Possible edges of the square that the noun fills, pixels."""
GRID = 2
"""Left and top of the square are multiples of this number of pixels."""


@dataclass(frozen=True)
class Scene:
    """The content of one image."""

    noun: int
    """Index into `CLASS_NAMES`."""
    background: int
    """Index into `BACKGROUNDS`."""
    size: int
    """Edge of the noun's square, pixels."""
    left: int
    """Columns left of the square."""
    top: int
    """Rows above the square."""
    mirrored: bool
    """Flipped left to right."""

    def render(self) -> np.ndarray:
        """Draw the scene: red, green, blue, uint8, shape (32, 32, 3)."""
        colour, alpha = _sprite(self.noun, self.size, self.mirrored)
        image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
        image[:] = list(BACKGROUNDS.values())[self.background]
        square = image[self.top : self.top + self.size, self.left : self.left + self.size]
        square[:] = alpha * colour + (1 - alpha) * square
        return image.round().astype(np.uint8)


def scene(seed: int, index: int) -> Scene:
    """The scene of (``seed``, ``index``): nouns in turn, everything else uniformly at random.

    Seed 0 is for training; other seeds are held out.
    """
    random = np.random.default_rng((seed, index))
    size = NOUN_SIZES[random.integers(len(NOUN_SIZES))]
    left, top = (GRID * int(n) for n in random.integers((IMAGE_SIZE - size) // GRID + 1, size=2))
    background, mirrored = int(random.integers(len(BACKGROUNDS))), bool(random.integers(2))
    return Scene(index % len(CLASS_NAMES), background, size, left, top, mirrored)


def load_emoji(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Render the first ``count`` scenes of a seed.

    Returns:
        Images, float32 in [-1, 1], shape (n, 3, 32, 32), and noun and background of each, int64, shape (n, 2).
    """
    scenes = [scene(seed, index) for index in range(count)]
    pixels = torch.from_numpy(np.stack([s.render() for s in scenes]))  # (n, 32, 32, 3)
    labels = torch.tensor([(s.noun, s.background) for s in scenes])
    return from_bytes(pixels.permute(0, 3, 1, 2).contiguous()), labels


@cache
def _sprite(noun: int, size: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """A noun's colour in 0..255, shape (size, size, 3), and opacity in [0, 1], shape (size, size, 1), anti-aliased."""
    picture = Image.open(Path(__file__).parent / "nouns" / f"{CLASS_NAMES[noun]}.png").convert("RGBA")
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BOX), np.float32)
    return pixels[..., :3], pixels[..., 3:] / 255
