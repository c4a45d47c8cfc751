"""The independent Fashion-MNIST classifier: class accuracy and the default feature network of the evaluation.

Trained by ``examples/train_classifier.py``; it shares nothing with the teacher but the data set.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
NUM_FEATURES = 128


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


def _conv(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class FashionClassifier(nn.Module):
    """A small residual CNN (0.40 M parameters) on 28x28 grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(1, 24, stride=1),  # 28x28
            _conv(24, 48, stride=2),  # 14x14
            ResidualBlock(48),
            _conv(48, NUM_FEATURES, stride=2),  # 7x7
            ResidualBlock(NUM_FEATURES),
        )
        self.head = nn.Linear(NUM_FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """Mean-pooled activations before the last layer.

        Args:
            images: In [-1, 1], shape (n, 1, 28, 28).

        Returns:
            Features, shape (n, 128), non-negative.

        Raises:
            ValueError: ``images`` have another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            raise ValueError(f"expected images of shape (n, 1, 28, 28) in [-1, 1], got {tuple(images.shape)}")
        return self.body(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the 10 classes, shape (n, 10), of images in [-1, 1], shape (n, 1, 28, 28)."""
        return self.head(self.features(images))


def load_classifier() -> FashionClassifier:
    """Load the shipped classifier, frozen, in eval mode, float32 (stored in float16)."""
    classifier = FashionClassifier()
    classifier.load_state_dict({name: value.to(torch.float32) for name, value in load_file(WEIGHTS).items()})
    return classifier.requires_grad_(False).eval()
