"""The judge of a comparison: the networks and the reference data that images are measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ardistill.config import JudgeConfig
from ardistill.devices import Device
from ardistill.errors import say
from ardistill.evaluation.features import FeatureNetwork, extract_features, feature_network
from ardistill.evaluation.metrics import FeatureStatistics
from ardistill.evaluation.reference import NETWORKS, load_reference, reference_path
from ardistill.evaluation.text_scores import TextScorer
from ardistill.files.images import open_images
from ardistill.teacher import Teacher, seeded_generator
from ardistill.zoo import CLASS_CONDITIONAL
from ardistill.zoo.classifier import load_classifier

TextScore = Callable[[Tensor, Sequence[str]], Tensor]
"""(images in [-1, 1], (n, c, h, w); n prompts) -> a score for each pair, (n,)."""


@dataclass(frozen=True)
class Judge:
    """Networks and data that images are measured with. Metrics that need a missing field are left out."""

    network: FeatureNetwork
    """Features for all distances."""
    reference: FeatureStatistics | None = None
    """Statistics of the data, for FD."""
    real_features: Tensor | None = None
    """Features of real images, (n, d), for KID, precision and recall."""
    held_out_features: Tensor | None = None
    """Features of other real images, (m, d), for the floor of FD: the distance of real images to the reference."""
    classifier: Callable[[Tensor], Tensor] | None = None
    """Images to logits, (n, classes), for class accuracy; trained independently of teacher and students."""
    text_scores: Mapping[str, TextScore] = field(default_factory=dict)
    """``clip_score`` and ``preference`` to the function that computes it; see `TextScorer`."""

    @classmethod
    def zoo(cls, name: str, device: Device = None) -> Judge:
        """The judge of an embedded teacher: its data's feature network, statistics and classifier.

        Args:
            name: ``"emoji"``, ``"fashion"`` or ``"scenes"``.
            device: Where the networks run; the best device if not given.
        """
        facts = load_reference(reference_path(name))
        classifier = load_classifier(name, device) if name in CLASS_CONDITIONAL else None
        network = feature_network(NETWORKS[name], device=device)
        return cls(network, facts.train, facts.real_features, facts.held_out_features, classifier)

    @classmethod
    def of_images(cls, network: FeatureNetwork, images: Tensor | Iterable[Tensor]) -> Judge:
        """A judge from real images: two thirds are the reference, one third gives the floor.

        The images are assigned at random, with a fixed seed: folders are sorted by class, and both parts need all
        classes.

        Args:
            network: Gives the features.
            images: In [-1, 1], shape (n, c, h, w); or batches of them, as `ardistill.files.images.open_images` reads.

        Raises:
            ValueError: There are fewer than 6 images, or a shape is wrong.
        """
        features = extract_features(network, images)
        if len(features) < 6:
            raise ValueError(f"expected 6 real images or more for a reference, got {len(features)}; give thousands")
        features = features[torch.randperm(len(features), device="cpu", generator=seeded_generator("reference"))]
        cut = len(features) * 2 // 3
        reference = FeatureStatistics.from_features(features[:cut])
        return cls(network, reference, features[:cut], features[cut:])

    @classmethod
    def from_config(cls, config: JudgeConfig, teacher: Teacher, device: Device = None) -> Judge:
        """The judge that a configuration asks for, for images that a teacher decodes.

        An embedded teacher without other wishes has the judge of its data set, `zoo`.

        Args:
            config: Networks and real images.
            teacher: Gives the size and channels of the images, and by its name the data set.
            device: Where the networks run; the best device if not given.

        Raises:
            ValueError: A network or the real images cannot be read, or do not fit.
        """
        judge = cls._for_images(config, teacher, device)
        scores: dict[str, TextScore] = {}
        if config.clip:
            scores["clip_score"] = TextScorer.from_pretrained(config.clip, device=device).clip_score
        if config.preference:
            scores["preference"] = TextScorer.from_pretrained(config.preference, device=device).preference
        return replace(judge, text_scores=scores)

    @classmethod
    def _for_images(cls, config: JudgeConfig, teacher: Teacher, device: Device) -> Judge:
        """The judge without scores of text."""
        data_set = teacher.name.removeprefix("zoo/") if teacher.name.startswith("zoo/") else ""
        network_name = NETWORKS.get(data_set)
        if network_name and config.features in (None, network_name) and config.reference is None:
            return cls.zoo(data_set, device)
        real = open_images(config.reference, teacher.image_channels) if config.reference else None
        if real is not None:
            height, width = (n * teacher.pixels_per_latent for n in teacher.sample_shape[-2:])
            if real.size != (width, height):
                say(
                    f"the images of {config.reference} are {real.size[0]}x{real.size[1]}, the drawn ones are "
                    f"{width}x{height}: figures are comparable to published ones only at equal sizes"
                )
        network = feature_network(config.features or "inception", weights=config.feature_weights, device=device)
        return cls.of_images(network, real) if real is not None else cls(network)
