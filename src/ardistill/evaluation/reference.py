"""References of the embedded teachers' data sets, so that an evaluation does not need the data.

They hold features and statistics from the shipped networks, and are made by ``examples/make_reference.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ardistill.evaluation.metrics import FeatureStatistics
from ardistill.zoo import CLASS_CONDITIONAL, FOLDERS

NETWORKS = {name: f"{name}-{'classifier' if name in CLASS_CONDITIONAL else 'detector'}" for name in FOLDERS}
"""Data set of an embedded teacher -> name of its feature network."""


@dataclass(frozen=True)
class Reference:
    """Real images of a data set, as features and statistics, to measure samples against."""

    train: FeatureStatistics
    """Statistics of the 60,000 training images, for FD to the data."""
    test: FeatureStatistics
    """Statistics of the 10,000 test images, for FD to images that no network was trained on."""
    real_features: Tensor
    """Features of 2,000 test images, float32, shape (2000, d), for precision, recall and KID."""
    held_out_features: Tensor
    """Features of 2,000 other test images, float32, shape (2000, d), for the floor: they are scored like samples."""

    def save(self, path: str | Path, feature_network: str) -> None:
        """Write a safetensors file, with the features rounded to float16.

        Args:
            path: File to write.
            feature_network: Name of the network that the features come from.
        """
        tensors = {"real_features": self.real_features.half(), "held_out_features": self.held_out_features.half()}
        for name, statistics in (("train", self.train), ("test", self.test)):
            tensors |= {f"{name}.mean": statistics.mean, f"{name}.cov": statistics.cov}
        metadata = {"train.count": str(self.train.count), "test.count": str(self.test.count)}
        save_file(tensors, path, metadata=metadata | {"feature_network": feature_network})


def reference_path(name: str) -> Path:
    """Path of the shipped reference of a data set, a key of `NETWORKS`."""
    return FOLDERS[name] / "reference.safetensors"


def load_reference(path: str | Path) -> Reference:
    """Read a file that `Reference.save` wrote."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        statistics = {
            name: FeatureStatistics(
                file.get_tensor(f"{name}.mean"), file.get_tensor(f"{name}.cov"), int(metadata[f"{name}.count"])
            )
            for name in ("train", "test")
        }
        features = {name: file.get_tensor(name).float() for name in ("real_features", "held_out_features")}
    return Reference(statistics["train"], statistics["test"], **features)
