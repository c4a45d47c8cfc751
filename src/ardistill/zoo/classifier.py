"""Classifiers of the embedded teachers' data sets, which give class accuracy and the default features of an evaluation.

``examples/train_classifier.py`` trains them; they share nothing with the teachers but the data sets.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ardistill.devices import Device, resolve_device
from ardistill.zoo import FOLDERS

NUM_FEATURES = 128
"""Width of the features."""
_SHAPES = {"emoji": ((3, 32, 32), (10, 6)), "fashion": ((1, 28, 28), (10,))}
"""Data set -> shape of its images, and the number of values of each label."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def conv(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class Classifier(nn.Module):
    """A small residual CNN (0.40 M parameters) that predicts the labels of an image, the class first.

    Args:
        name: Data set: ``"emoji"`` (32x32 in colour; noun, background) or ``"fashion"`` (28x28 grey; class).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.image_shape, self.num_values = _SHAPES[name]
        self.body = nn.Sequential(
            conv(self.image_shape[0], 24, stride=1),  # (h, w)
            conv(24, 48, stride=2),  # (h / 2, w / 2)
            ResidualBlock(48),
            conv(48, NUM_FEATURES, stride=2),  # (h / 4, w / 4)
            ResidualBlock(NUM_FEATURES),
        )
        self.head = nn.Linear(NUM_FEATURES, sum(self.num_values))

    def features(self, images: Tensor) -> Tensor:
        """Mean-pooled activations before the last layer.

        Args:
            images: In [-1, 1], shape (n, c, h, w), on any device.

        Returns:
            Features, shape (n, 128), non-negative, on the classifier's device.

        Raises:
            ValueError: ``images`` do not have the data set's shape.
        """
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"expected images of shape (n, {expected}) in [-1, 1], got {tuple(images.shape)}")
        return self.body(images.to(self.head.weight.device)).mean(dim=(2, 3))

    def labels(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of each label, class first, shapes (n, number of its values)."""
        return self.head(self.features(images)).split(self.num_values, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes, shape (n, classes), of images in [-1, 1], shape (n, c, h, w)."""
        return self.labels(images)[0]


def classifier_path(name: str) -> Path:
    """Path of the weights of a data set's classifier."""
    return FOLDERS[name] / "classifier.safetensors"


def load_classifier(name: str, device: Device = None) -> Classifier:
    """Load a data set's classifier, frozen, in evaluation mode, in float32 (it is stored in float16).

    Args:
        name: Data set, ``"emoji"`` or ``"fashion"``.
        device: Device of the classifier; the best available if not given.
    """
    classifier = Classifier(name)
    stored = load_file(classifier_path(name))
    classifier.load_state_dict({key: value.to(torch.float32) for key, value in stored.items()})
    return classifier.requires_grad_(False).eval().to(resolve_device(device))
