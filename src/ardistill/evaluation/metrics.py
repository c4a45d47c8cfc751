"""Distances between sets of features, and shares: pure functions, computed in float64.

``features`` are float tensors of shape (n, d), one row per sample, all from one network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ardistill.training import lies_among


def _check(*features: Tensor, at_least: int = 1) -> None:
    """Raise a ValueError unless features are finite, of shape (n, d), with one d and enough rows."""
    for rows in features:
        if rows.ndim != 2 or rows.shape[1] != features[0].shape[1]:
            shapes = ", ".join(str(tuple(f.shape)) for f in features)
            raise ValueError(f"expected features of shape (n, d), d the same throughout, got {shapes}")
        if len(rows) < at_least:
            raise ValueError(f"expected at least {at_least} samples, got {len(rows)}: make more")
        if not rows.isfinite().all():
            bad = (~rows.isfinite().all(dim=1)).sum().item()
            raise ValueError(f"features of {bad} of {len(rows)} samples are not finite")


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of features, from which a Fréchet distance is computed.

    Statistics of a large data set are computed once, stored with `save` and read with `load`; the feature network must
    be the same as for the samples.
    """

    mean: Tensor
    """Mean, float64, shape (d,)."""
    cov: Tensor
    """Unbiased covariance, float64, shape (d, d)."""
    count: int
    """Number of samples."""

    @classmethod
    def from_features(cls, features: Tensor) -> FeatureStatistics:
        """Compute the statistics of features, shape (n, d).

        Warns:
            UserWarning: There are no more samples than features: the covariance is singular, and distances come out far
                too large.

        Raises:
            ValueError: Fewer than 2 samples, a wrong shape, or values that are not finite.
        """
        _check(features, at_least=2)
        count, num_features = features.shape
        if count <= num_features:
            warnings.warn(
                f"{count} samples for {num_features} features: the Fréchet distance comes out far too large; "
                f"use more than {num_features} samples, better ten times as many",
                stacklevel=2,
            )
        rows = features.double()
        return cls(rows.mean(dim=0), torch.cov(rows.T).reshape(num_features, num_features), count)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with mean, cov and count."""
        save_file({"mean": self.mean, "cov": self.cov, "count": torch.tensor(self.count, device="cpu")}, path)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read a file that `save` wrote."""
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["cov"], int(tensors["count"]))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Fréchet (squared Wasserstein-2) distance between two Gaussians; 0 is best.

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), the root in its symmetric form
    (cov_a^(1/2) cov_b cov_a^(1/2))^(1/2). torchmetrics, which a test compares with, does not take stored statistics.

    Raises:
        ValueError: The two have different numbers of features.

    Source: Heusel et al. 2017, arXiv:1706.08500, Eq. 6.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"expected statistics from one feature network, got those of {len(a.mean)} and of {len(b.mean)} features; "
            "compute them again with one network"
        )
    values, vectors = torch.linalg.eigh(a.cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * overlap
    return max(distance.item(), 0.0)


class KernelDistance(NamedTuple):
    """Kernel distance (KID in Inception features) over random subsets."""

    mean: float
    """Mean over subsets; may be slightly negative, because the estimate is unbiased."""
    std: float
    """Standard deviation over subsets."""


def kernel_distance(
    features_a: Tensor, features_b: Tensor, num_subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Kernel distance: unbiased squared MMD with the cubic kernel (x.y / d + 1)^3, over random subsets.

    Args:
        features_a: Features of one set, shape (n, d), n at least ``subset_size``.
        features_b: Features of the other set, shape (m, d), m at least ``subset_size``.
        num_subsets: Number of subsets, each drawn without replacement.
        subset_size: Samples of each set in a subset.
        seed: Seed of the subsets.

    Raises:
        ValueError: Fewer samples than ``subset_size``, a wrong shape, or values that are not finite.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Sec. 4; a test holds it equal to torchmetrics.
    """
    _check(features_a, features_b, at_least=subset_size)
    a, b = features_a.double(), features_b.double()
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(num_subsets):
        rows_a = torch.randperm(len(a), generator=generator, device="cpu")[:subset_size]
        rows_b = torch.randperm(len(b), generator=generator, device="cpu")[:subset_size]
        values.append(_unbiased_mmd(a[rows_a], b[rows_b]))
    return KernelDistance(torch.stack(values).mean().item(), torch.stack(values).std(correction=0).item())


def _unbiased_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy (Eq. 4 there) between features of shape (n, d) and (n, d)."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = sum(kernel(x, x).sum() - kernel(x, x).diagonal().sum() for x in (a, b))
    return within / (len(a) * (len(a) - 1)) - 2 * kernel(a, b).mean()


class PrecisionRecall(NamedTuple):
    """Improved precision and recall, in [0, 1]; higher is better."""

    precision: float
    """Share of generated samples that lie among the real ones: quality."""
    recall: float
    """Share of real samples that lie among the generated ones: coverage."""


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1000) -> PrecisionRecall:
    """Improved precision and recall; comparable only at equal numbers of samples.

    A sample lies among a set if it is no farther from one of the members than that member's k-th neighbour.

    Args:
        real: Features of real samples, shape (n, d), n more than ``k``.
        fake: Features of generated samples, shape (m, d), m more than ``k``.
        k: Neighbour that gives a member's radius.
        chunk: Rows of the distance matrix held in memory at once.

    Raises:
        ValueError: Too few samples, a wrong shape, or values that are not finite.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2.
    """
    _check(real, fake, at_least=k + 1)
    real, fake = real.double(), fake.double()

    def share_within(members: Tensor, samples: Tensor) -> float:
        return lies_among(samples, members, k, chunk).double().mean().item()

    return PrecisionRecall(share_within(real, fake), share_within(fake, real))


@torch.no_grad()
def predict_labels(classifier: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 500) -> Tensor:
    """Most likely class of each image, int64, shape (n,), on the CPU.

    Args:
        classifier: Maps images to logits, shape (n, classes).
        images: Images in the classifier's format, shape (n, c, h, w).
        batch_size: Images per call.
    """
    return torch.cat([classifier(rows).argmax(dim=1).cpu() for rows in images.split(batch_size)])


def class_accuracy(
    classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, batch_size: int = 500
) -> float:
    """Share of images that an independent classifier assigns to the class they were drawn for.

    Args:
        classifier: Maps images to logits, shape (n, classes).
        images: Images in the classifier's format, shape (n, c, h, w).
        labels: Classes that were drawn, integers, shape (n,).
        batch_size: Images per call.

    Raises:
        ValueError: The numbers of images and labels differ, or are 0.
    """
    if labels.shape != (len(images),) or len(images) == 0:
        raise ValueError(f"expected one label per image, got labels {tuple(labels.shape)} for {len(images)} images")
    return (predict_labels(classifier, images, batch_size) == labels.cpu()).double().mean().item()


@dataclass(frozen=True)
class PairedDistance:
    """Euclidean feature distances between two samplers' samples of the same noise and label; 0 is best."""

    values: Tensor
    """Distance of each pair, float64, shape (n,), of videos (n / frames,)."""
    mean: float
    """Mean over pairs."""
    median: float
    """Median over pairs."""
    trimmed_mean: float
    """Mean without the smallest and the largest 10 %, which a few outliers do not dominate."""
    unpaired: float
    """Mean distance between each row of a and the next row of b, a sample from other noise, for scale."""
    flipped: float | None
    """Share of pairs that a classifier assigns to different classes; None without labels."""


def paired_distance(
    features_a: Tensor,
    features_b: Tensor,
    labels_a: Tensor | None = None,
    labels_b: Tensor | None = None,
    frames: int = 1,
) -> PairedDistance:
    """Compare two samplers sample by sample, on the same noise.

    Args:
        features_a: Features of one sampler's samples, shape (n, d), n of 2 or more.
        features_b: Features of the other's, shape (n, d); row i has the noise and class of row i of ``features_a``.
        labels_a: Classes that a classifier assigns to a's samples, integers, shape (n,).
        labels_b: Classes that it assigns to b's samples, integers, shape (n,).
        frames: Rows in turn that are the frames of one video; a pair is then of two videos, at the mean distance of
            their frames.

    Raises:
        ValueError: Shapes differ, values are not finite, or only one of the labels is given.
    """
    _check(features_a, features_b, at_least=2)
    if features_a.shape != features_b.shape:
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise ValueError(f"expected pairs, row by row, got features {shapes}")
    if (labels_a is None) != (labels_b is None):
        raise ValueError("expected the predicted labels of both or of neither, got one; give both")
    flipped = None
    if labels_a is not None and labels_b is not None:
        if labels_a.shape != (len(features_a),) or labels_b.shape != labels_a.shape:
            raise ValueError(f"expected {len(features_a)} labels each, got {labels_a.shape[0]} and {labels_b.shape[0]}")
        flipped = (labels_a != labels_b).double().mean().item()
    a, b = features_a.double(), features_b.double()
    values = torch.linalg.vector_norm(a - b, dim=1).unflatten(0, (-1, frames)).mean(1)
    cut = len(values) // 10
    return PairedDistance(
        values=values,
        mean=values.mean().item(),
        median=values.quantile(0.5).item(),
        trimmed_mean=values.sort().values[cut : len(values) - cut].mean().item(),
        unpaired=torch.linalg.vector_norm(a - b.roll(-frames, dims=0), dim=1).mean().item(),
        flipped=flipped,
    )


class BootstrapInterval(NamedTuple):
    """A difference of means and its 95 % interval."""

    difference: float
    """mean(a) - mean(b)."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def paired_bootstrap(values_a: Tensor, values_b: Tensor, num_resamples: int = 2000, seed: int = 0) -> BootstrapInterval:
    """95 % percentile bootstrap interval of mean(a) - mean(b), both resampled on the same rows.

    Args:
        values_a: One value per sample, shape (n,), n of 2 or more.
        values_b: Values of samples from the same noise and labels, shape (n,).
        num_resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        ValueError: Shapes differ, there are fewer than 2 samples, or values are not finite.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
    """
    if values_a.ndim != 1 or values_a.shape != values_b.shape:
        raise ValueError(f"expected pairs of shape (n,), got {tuple(values_a.shape)} and {tuple(values_b.shape)}")
    differences = values_a.double() - values_b.double()
    _check(differences[:, None], at_least=2)
    generator = torch.Generator().manual_seed(seed)
    count = len(differences)
    means = torch.stack(
        [
            differences[torch.randint(count, (count,), generator=generator, device="cpu")].mean()
            for _ in range(num_resamples)
        ]
    )
    low, high = means.quantile(differences.new_tensor([0.025, 0.975])).tolist()
    return BootstrapInterval(differences.mean().item(), low, high)


class RealFloor(NamedTuple):
    """Fréchet distance of real images to the reference: the score of a perfect sampler."""

    distance: float
    """Fréchet distance."""
    num_samples: int
    """Number of real images."""

    def __str__(self) -> str:
        """The distance with an explanation, for reports."""
        return f"{self.distance:.3f}, the distance of {self.num_samples:,} held-out real images to the reference"


def real_floor(held_out: Tensor, reference: FeatureStatistics, count: int | None = None, seed: int = 0) -> RealFloor:
    """Fréchet distance of held-out real samples to the reference; a lower score does not mean a better sampler.

    It falls with the number of samples, so take as many as the sampler drew.

    Args:
        held_out: Features of real samples that are not in the reference, shape (n, d).
        reference: Statistics of the data.
        count: Samples to draw from ``held_out``; all if not given.
        seed: Seed of the draw.

    Raises:
        ValueError: ``count`` exceeds the number of held-out samples.
    """
    count = len(held_out) if count is None else count
    if count > len(held_out):
        raise ValueError(
            f"expected at most as many held-out samples as there are, got {count}; there are {len(held_out)}"
        )
    rows = torch.randperm(len(held_out), device="cpu", generator=torch.Generator().manual_seed(seed))[:count]
    return RealFloor(frechet_distance(FeatureStatistics.from_features(held_out[rows]), reference), count)
