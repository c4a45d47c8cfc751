"""Feature networks: what turns images into the features that every distance of the evaluation is measured in.

Any network will do, but its name goes with the figure: the Fréchet distance is called FID only in the features of the
Inception-v3 weights that FID is defined with (Heusel et al. 2017, arXiv:1706.08500), else FD-<network>.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError  # what torch.load refuses with; nothing is unpickled here
from typing import Protocol

import torch
from torch import Tensor, nn

from ardistill.devices import Device, device_of, resolve_device
from ardistill.files.images import open_images
from ardistill.zoo import CLASS_CONDITIONAL


class FeatureNetwork(Protocol):
    """Images in [-1, 1], shape (n, c, h, w), to features, shape (n, d)."""

    @property
    def name(self) -> str:
        """Goes into reports and beside stored statistics."""

    @property
    def fd_name(self) -> str:
        """What a Fréchet distance in these features is called: ``FID`` or ``FD-<name>``."""

    @property
    def num_features(self) -> int | None:
        """d, or None where only a call tells."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features, float, shape (n, d), of images in [-1, 1], shape (n, c, h, w)."""


@dataclass(frozen=True)
class ModuleFeatures:
    """A feature network made of a torch function; see `feature_network` for the known ones."""

    name: str
    """Name in reports."""
    function: Callable[[Tensor], Tensor]
    """Images in [-1, 1], shape (n, c, h, w), to features, shape (n, d)."""
    num_features: int | None = None
    """d, or None where only a call tells."""
    is_fid: bool = False
    """Whether these are the features that FID is defined with."""
    device: torch.device | None = None
    """Where ``function`` runs; images are brought there. None: they are passed on from where they are."""

    @property
    def fd_name(self) -> str:
        return "FID" if self.is_fid else f"FD-{self.name}"

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images if self.device is None else images.to(self.device))


def _zoo_classifier(name: str, weights: str | Path | None, device: torch.device) -> ModuleFeatures:
    from ardistill.zoo.classifier import NUM_FEATURES, load_classifier

    if weights is not None:
        raise ValueError(f"{name}-classifier has its own weights: leave weights away")
    return ModuleFeatures(f"{name}-classifier", load_classifier(name, device).features, NUM_FEATURES, device=device)


def _inception(weights: str | Path | None, device: torch.device) -> ModuleFeatures:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        lacks_fidelity = isinstance(error, ImportError) and (error.name or "").startswith("torch_fidelity")
        needed, remedy = (
            "torchvision",
            "pip install torchvision, in the build made for your torch (https://pytorch.org)",
        )
        if lacks_fidelity:
            needed, remedy = "torch-fidelity", "pip install 'ardistill[fid]'"
        raise ImportError(f"inception features need {needed} ({error}); {remedy}", name=needed) from error

    class Inception(FeatureExtractorInceptionV3):
        """torch-fidelity's network, with the loading of weights left to us (its own unpickles any object)."""

        def load_state_dict(self, state_dict, strict=True, assign=False):
            return super().load_state_dict(state_dict, strict, assign) if state_dict else None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Inception("inception", ["2048"], feature_extractor_weights_path=nothing)
    name, is_fid = "inception", False
    if weights is None:
        network.load_state_dict(
            torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
        )
        is_fid = True
    elif weights == "random":
        name = "inception-random"
    elif Path(weights).is_file():
        try:
            network.load_state_dict(torch.load(weights, weights_only=True))
        except (UnpicklingError, RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(f"{weights} is no state dict of inception: {str(error).splitlines()[0]}") from error
        is_fid = _sha256(Path(weights)).startswith(Path(URL_INCEPTION_V3).stem.split("-")[-1])
        name = "inception" if is_fid else f"inception-{Path(weights).stem}"
    else:
        raise ValueError(f"no Inception weights at {weights}: expected a state dict file, None (download) or 'random'")
    network = network.to(device)

    def features(images: Tensor) -> Tensor:
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return network(pixels.expand(-1, 3, -1, -1))[0]

    return ModuleFeatures(name, features, 2048, is_fid, device)


def _sha256(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scenes_detector(weights: str | Path | None, device: torch.device) -> ModuleFeatures:
    from ardistill.zoo.scenes.detector import NUM_FEATURES, load_detector

    if weights is not None:
        raise ValueError("scenes-detector has its own weights: leave weights away")
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
            size), the path of a TorchScript file, or a module; the latter two take images in [-1, 1], shape (n, c, h,
            w), and give features (n, d).
        weights: Only for ``"inception"``: a state dict file; None takes torch-fidelity's own, downloaded once into the
            torch hub folder; ``"random"`` leaves the network untrained, to try the path.
        device: Where it runs; where a given module is, else the best device there is, if not given.

    Raises:
        ValueError: ``source`` is neither a known name nor a file, ``weights`` do not belong to it, or there is no such
            device.
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
        network: See `feature_network`.
        images: In [-1, 1], shape (n, c, h, w), n of 1 or more; or batches of them, one after the other, each of which
            is dropped once its features are known.
        batch_size: Images per call of the network, where they come at once.

    Returns:
        Features on the CPU, float32, shape (n, d).

    Raises:
        ValueError: Images or features have a wrong shape, or are not finite.
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


def load_images(source: str | Path) -> Tensor:
    """Images of one size in a folder, all in memory, by name, in [-1, 1], shape (n, c, h, w), c = 1 or 3.

    For many of them give `ardistill.files.images.open_images` to `extract_features` instead, which takes batches.

    Raises:
        ValueError: There are none, or their sizes or modes differ, or one cannot be read.
    """
    return torch.cat(list(open_images(source, progress=False)))
