"""The embedded teachers' references, in the features of the shipped networks, so that evaluating needs no data set.

Made by ``examples/make_reference.py``.
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
"""Name of a teacher's data set to its feature network's."""


@dataclass(frozen=True)
class Reference:
    """What a sampler of a data set is held against."""

    train: FeatureStatistics
    """Of the 60,000 train images: what FD to the data is measured to."""
    test: FeatureStatistics
    """Of the 10,000 test images."""
    real_features: Tensor
    """Of 2,000 test images, float32, shape (2000, d): for precision, recall and KID."""
    held_out_features: Tensor
    """Of 2,000 other test images, float32, shape (2000, d): scored like a sampler's, they give the floors."""

    def save(self, path: str | Path, feature_network: str) -> None:
        """Write a safetensors file; the features are rounded to float16."""
        tensors = {"real_features": self.real_features.half(), "held_out_features": self.held_out_features.half()}
        for name, statistics in (("train", self.train), ("test", self.test)):
            tensors |= {f"{name}.mean": statistics.mean, f"{name}.cov": statistics.cov}
        metadata = {"train.count": str(self.train.count), "test.count": str(self.test.count)}
        save_file(tensors, path, metadata=metadata | {"feature_network": feature_network})


def reference_path(name: str) -> Path:
    """Where the shipped reference of a data set is."""
    return FOLDERS[name] / "reference.safetensors"


def load_reference(path: str | Path) -> Reference:
    """Load what `Reference.save` wrote."""
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
