"""Feature networks: they turn images into the features that all distances of the evaluation are measured in.

Any network will do, but its name belongs to the figure: a Fréchet distance is called FID only in the features of the
Inception-v3 weights that define FID (Heusel et al. 2017, arXiv:1706.08500), FD-<network> otherwise.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError  # torch.load raises it for files that are no state dict; nothing is unpickled here
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ardistill.devices import Device, device_of, resolve_device
from ardistill.files.pixels import to_bytes
from ardistill.zoo import CLASS_CONDITIONAL


class FeatureNetwork(Protocol):
    """A network that maps images in [-1, 1], shape (n, c, h, w), to features, shape (n, d)."""

    @property
    def name(self) -> str:
        """The network's name in reports and stored statistics."""

    @property
    def fd_name(self) -> str:
        """The name of a Fréchet distance in these features: ``FID`` or ``FD-<name>``."""

    @property
    def num_features(self) -> int | None:
        """Number of features, d; None if it is not known before the first call."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features, float, shape (n, d), of images in [-1, 1], shape (n, c, h, w)."""


@dataclass(frozen=True)
class ModuleFeatures:
    """A feature network made from a torch function; `feature_network` makes the known ones."""

    name: str
    """The network's name in reports."""
    function: Callable[[Tensor], Tensor]
    """Images in [-1, 1], shape (n, c, h, w), to features, shape (n, d)."""
    num_features: int | None = None
    """Number of features, d; None if it is not known before the first call."""
    is_fid: bool = False
    """Whether these are the features that define FID."""
    device: torch.device | None = None
    """Images are moved to this device before ``function`` is called; not moved if None."""

    @property
    def fd_name(self) -> str:
        """``FID`` if these features define it, ``FD-<name>`` otherwise."""
        return "FID" if self.is_fid else f"FD-{self.name}"

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images if self.device is None else images.to(self.device))


def _zoo_classifier(name: str, weights: str | Path | None, device: torch.device) -> ModuleFeatures:
    from ardistill.zoo.classifier import NUM_FEATURES, load_classifier

    if weights is not None:
        raise ValueError(f"{name}-classifier has its own weights; leave weights out")
    return ModuleFeatures(f"{name}-classifier", load_classifier(name, device).features, NUM_FEATURES, device=device)


def _inception(weights: str | Path | None, device: torch.device) -> ModuleFeatures:
    extractor = _torch_fidelity().FeatureExtractorInceptionV3

    class Inception(extractor):  # type: ignore[valid-type, misc]
        """torch-fidelity's network without its own loading of weights, which unpickles any object."""

        def load_state_dict(self, state_dict, strict=True, assign=False):
            return super().load_state_dict(state_dict, strict, assign) if state_dict else None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Inception("inception", ["2048"], feature_extractor_weights_path=nothing)
    name = _load_inception(network, weights)
    network = network.to(device)

    def features(images: Tensor) -> Tensor:
        return network(to_bytes(images).expand(-1, 3, -1, -1))[0]

    return ModuleFeatures(name, features, 2048, name == "inception", device)


def _torch_fidelity() -> Any:
    """torch-fidelity's module of the Inception network.

    Raises:
        ImportError: torch-fidelity or torchvision is missing or does not fit torch, with what to install.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not fit torch
        needed, remedy = "torchvision", "pip install torchvision, in the build for your torch (https://pytorch.org)"
        if isinstance(error, ImportError) and (error.name or "").startswith("torch_fidelity"):
            needed, remedy = "torch-fidelity", "pip install 'ardistill[fid]'"
        raise ImportError(f"inception features need {needed} ({error}); {remedy}", name=needed) from error
    return feature_extractor_inceptionv3


def _load_inception(network: nn.Module, weights: str | Path | None) -> str:
    """Load weights into the network, and return its name: ``inception`` only with the weights that define FID."""
    url = _torch_fidelity().URL_INCEPTION_V3
    if weights is None:
        network.load_state_dict(torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True))
        return "inception"
    if weights == "random":
        return "inception-random"
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"no Inception weights at {weights}: expected a state dict file, None (download) or 'random'")
    try:
        network.load_state_dict(torch.load(path, weights_only=True))
    except (UnpicklingError, RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"expected a state dict of inception in {weights}: {str(error).splitlines()[0]}; give another file"
        ) from error
    return "inception" if _sha256(path).startswith(Path(url).stem.split("-")[-1]) else f"inception-{path.stem}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scenes_detector(weights: str | Path | None, device: torch.device) -> ModuleFeatures:
    from ardistill.zoo.scenes.detector import NUM_FEATURES, load_detector

    if weights is not None:
        raise ValueError("scenes-detector has its own weights; leave weights out")
    return ModuleFeatures("scenes-detector", load_detector(device=device).features, NUM_FEATURES, device=device)


_KNOWN: dict[str, Callable[[str | Path | None, torch.device], ModuleFeatures]] = {
    **{f"{name}-classifier": partial(_zoo_classifier, name) for name in CLASS_CONDITIONAL},
    "scenes-detector": _scenes_detector,
    "inception": _inception,
}


def feature_network(
    source: str | Path | nn.Module, *, weights: str | Path | None = None, device: Device = None
) -> ModuleFeatures:
    """A feature network by name, from a TorchScript file, or from a module.

    Args:
        source: ``"fashion-classifier"`` (shipped, 128 features of 28x28 grey images), ``"emoji-classifier"`` (shipped,
            128 features of 32x32 colour images), ``"scenes-detector"`` (shipped, 96 features of the same),
            ``"inception"`` (torch-fidelity's port of the FID network, 2048 features of grey or colour images of any
            size), the path of a TorchScript file, or a module; the last two take images in [-1, 1], shape (n, c, h, w),
            and return features (n, d).
        weights: For ``"inception"`` only: a state dict file; None downloads torch-fidelity's weights once into the
            torch hub folder; ``"random"`` leaves the network untrained, for trials without a download.
        device: Where the network runs; if not given, where a given module is, else the best device.

    Raises:
        ValueError: ``source`` is neither a known name nor a file, ``weights`` do not fit it, or the device does not
            exist.
        ImportError: torch-fidelity or torchvision is missing, or does not fit torch.
    """
    if isinstance(source, str) and source in _KNOWN:
        return _KNOWN[source](weights, resolve_device(device))
    if weights is not None:
        raise ValueError(f"weights are for 'inception' only, not for {source!r}")
    if isinstance(source, nn.Module):
        where = resolve_device(device, device_of(source))
        return ModuleFeatures(type(source).__name__, source.to(where).eval(), device=where)
    path = Path(source)
    if not path.is_file():
        names = ", ".join(_KNOWN)
        raise ValueError(
            f"unknown feature network {str(source)!r}: expected {names}, or the path of a TorchScript file"
        )
    try:
        where = resolve_device(device)
        network = torch.jit.load(path, map_location=where)
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be read as a TorchScript file, which torch.jit.save writes: {str(error).splitlines()[0]}"
        ) from error
    return ModuleFeatures(path.stem, network.eval(), device=where)


@torch.no_grad()
def extract_features(network: FeatureNetwork, images: Tensor | Iterable[Tensor], batch_size: int = 500) -> Tensor:
    """Features of many images.

    Args:
        network: Gives the features; see `feature_network`.
        images: In [-1, 1], shape (n, c, h, w), n of 1 or more; or an iterable of such batches, of which only one is
            held in memory at a time, such as `ardistill.files.images.open_images` returns.
        batch_size: Images per call of the network if all are given at once.

    Returns:
        Features on the CPU, float32, shape (n, d).

    Raises:
        ValueError: Images or features have a wrong shape, or features are not finite.
    """
    found = [_features(network, x) for x in (images.split(batch_size) if isinstance(images, Tensor) else images)]
    if not found:
        raise ValueError("expected images, got none")
    return torch.cat(found)


def _features(network: FeatureNetwork, images: Tensor) -> Tensor:
    """Features of one batch."""
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(
            f"expected float images in [-1, 1] of shape (n, c, h, w), got {images.dtype} {tuple(images.shape)}"
        )
    features = network(images).float().cpu()
    expected = network.num_features or features.shape[-1]
    if features.shape != (len(images), expected):
        raise ValueError(f"{network.name}: expected features {(len(images), expected)}, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError(f"{network.name}: features are not finite; look at the images ({_range(images)})")
    return features


def _range(images: Tensor) -> str:
    return f"from {images.min():.3g} to {images.max():.3g}, {(~images.isfinite()).sum()} values not finite"
