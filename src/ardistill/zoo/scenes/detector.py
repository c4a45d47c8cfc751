"""A detector of the nouns in a picture of the scene world, which measures adherence to a prompt.

``examples/train_detector.py`` trains it on renders of every combination, seen and unseen, and on pictures that no
caption describes; it shares nothing with the teacher but the nouns' pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ardistill.devices import Device, resolve_device
from ardistill.zoo import FOLDERS
from ardistill.zoo.classifier import ResidualBlock, conv
from ardistill.zoo.scenes.data import COLOURS, IMAGE_SIZE, NOUNS, SIZES

NUM_FEATURES = 96
"""Width of the features."""
STRIDE = 4
"""Edge of the cells that are searched for nouns, pixels."""
NUM_VALUES = (len(NOUNS), len(COLOURS), len(SIZES))
"""Number of nouns, colours and sizes."""
WEIGHTS = FOLDERS["scenes"] / "detector.safetensors"
"""Path of the shipped detector's weights."""


@dataclass(frozen=True)
class Found:
    """A noun that the detector found."""

    noun: int
    """Index into `NOUNS`."""
    colour: int
    """Index into `COLOURS`."""
    size: str
    """Key of `SIZES`."""
    x: float
    """Horizontal position of its centre, pixels from the left."""
    y: float
    """Vertical position of its centre, pixels from the top."""


class Detector(nn.Module):
    """A small residual CNN (0.26 M parameters) that predicts for each cell whether and which noun is centred there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 24, stride=1),  # (32, 32)
            conv(24, 48, stride=2),  # (16, 16)
            ResidualBlock(48),
            conv(48, NUM_FEATURES, stride=2),  # (8, 8)
            ResidualBlock(NUM_FEATURES),
        )
        self.head = nn.Conv2d(NUM_FEATURES, 1 + sum(NUM_VALUES), 1)

    def _cells(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            shape = f"(n, 3, {IMAGE_SIZE}, {IMAGE_SIZE})"
            raise ValueError(f"expected images of shape {shape} in [-1, 1], got {tuple(images.shape)}")
        return self.body(images.to(self.head.weight.device))

    def features(self, images: Tensor) -> Tensor:
        """Mean-pooled activations before the last layer.

        Args:
            images: In [-1, 1], shape (n, 3, 32, 32), on any device.

        Returns:
            Features, shape (n, 96), non-negative, on the detector's device.

        Raises:
            ValueError: ``images`` have a different shape.
        """
        return self._cells(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of the presence of a noun, shape (n, 1, 8, 8), then of noun, colour and size, (n, values, 8, 8).

        Args:
            images: In [-1, 1], shape (n, 3, 32, 32).

        Raises:
            ValueError: ``images`` have a different shape.
        """
        return self.head(self._cells(images)).split((1, *NUM_VALUES), 1)

    @torch.no_grad()
    def find(self, images: Tensor, batch_size: int = 500) -> list[list[Found]]:
        """Find the nouns of each image, in the order of rows, then columns.

        A cell holds a noun if its presence is more likely than not, and at least as likely as in the eight cells around
        it. The noun's centre is the mean of these nine cells, weighted by presence.

        Args:
            images: In [-1, 1], shape (n, 3, 32, 32).
            batch_size: Images processed at once.

        Raises:
            ValueError: ``images`` have a different shape.
        """
        device, sizes = self.head.weight.device, tuple(SIZES)
        found: list[list[Found]] = [[] for _ in range(len(images))]
        for start in range(0, len(images), batch_size):
            presence, *labels = self(images[start : start + batch_size])
            is_peak = (presence > 0) & (presence == nn.functional.max_pool2d(presence, 3, stride=1, padding=1))
            image, _, row, column = is_peak.nonzero(as_tuple=True)
            values = torch.stack([x.argmax(1)[image, row, column] for x in labels], 1)
            weight, places = presence.sigmoid(), (torch.arange(presence.shape[-1], device=device) + 0.5) * STRIDE
            parts = torch.cat([weight * places, weight * places[:, None], weight], 1)  # (n, 3, 8, 8): x, y, 1
            around = nn.functional.avg_pool2d(parts, 3, stride=1, padding=1)[image, :, row, column]
            middles = around[:, :2] / around[:, 2:]
            for i, (noun, colour, size), (x, y) in zip(image.tolist(), values.tolist(), middles.tolist(), strict=True):
                found[start + i].append(Found(noun, colour, sizes[size], x, y))
        return found


def load_detector(path: str | Path = WEIGHTS, device: Device = None) -> Detector:
    """Load a detector, frozen, in evaluation mode, in float32 (it is stored in float16).

    Args:
        path: Path of its weights; the shipped ones if not given.
        device: Device of the detector; the best available if not given.
    """
    detector = Detector()
    detector.load_state_dict({name: x.to(torch.float32) for name, x in load_file(path).items()})
    return detector.requires_grad_(False).eval().to(resolve_device(device))
