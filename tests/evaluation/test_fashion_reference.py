import json

import pytest
import torch

from ardistill.evaluation import FeatureStatistics, frechet_distance, real_floor
from ardistill.zoo.fashion.classifier import WEIGHTS, load_classifier
from ardistill.zoo.fashion.reference import REFERENCE, FashionReference, load_reference


def test_shipped_classifier_is_small_and_frozen():
    assert WEIGHTS.stat().st_size < 1.2e6
    assert json.loads(WEIGHTS.with_suffix(".json").read_text())["test_accuracy"] >= 0.93
    classifier = load_classifier()
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    assert classifier(images).shape == (3, 10) and classifier.features(images).shape == (3, 128)
    with pytest.raises(ValueError, match=r"\(n, 1, 28, 28\)"):
        classifier(torch.zeros(3, 3, 28, 28))


def test_shipped_reference_belongs_to_the_shipped_classifier():
    reference = load_reference()
    assert REFERENCE.stat().st_size < 1.5e6
    assert (reference.train.count, reference.test.count) == (60_000, 10_000)
    assert reference.real_features.shape == reference.held_out_features.shape == (2000, 128)
    # The stored features come from the images that the test statistics were fitted to, in the same network.
    of_features = FeatureStatistics.from_features(torch.cat([reference.real_features, reference.held_out_features]))
    scale = reference.test.cov.trace().item()
    assert frechet_distance(of_features, reference.test) < 0.01 * scale
    assert real_floor(reference.held_out_features, reference.train).distance < 0.05 * scale


def test_reference_survives_saving(tmp_path):
    reference = load_reference()
    reference.save(tmp_path / "reference.safetensors")
    loaded = load_reference(tmp_path / "reference.safetensors")
    assert isinstance(loaded, FashionReference) and loaded.train.count == reference.train.count
    assert torch.equal(loaded.train.cov, reference.train.cov) and torch.equal(loaded.test.mean, reference.test.mean)
    assert torch.equal(loaded.real_features, reference.real_features)
