import pytest
import torch

from ardistill.evaluation import (
    FeatureStatistics,
    class_accuracy,
    frechet_distance,
    kernel_distance,
    paired_bootstrap,
    paired_distance,
    precision_recall,
    predict_labels,
    real_floor,
)


def normal(count: int, num_features: int = 16, seed: int = 0, scale: float = 1.0, shift: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, num_features, generator=generator) + shift


class Given(torch.nn.Module):
    """A feature network for torchmetrics that returns its input, so that features are passed as images."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, features):
        return features


def test_frechet_distance_of_a_set_to_itself_is_zero():
    statistics = FeatureStatistics.from_features(normal(500))
    assert frechet_distance(statistics, statistics) < 1e-9


def test_frechet_distance_of_known_gaussians():
    # For commuting covariances: |difference of means|^2 + sum (sqrt(a) - sqrt(b))^2
    a = FeatureStatistics(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()), 10)
    b = FeatureStatistics(torch.full((3,), 2.0).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0]).double()), 10)
    assert frechet_distance(a, b) == pytest.approx(12 + 1 + 0 + 4, rel=1e-12)


def test_frechet_distance_equals_torchmetrics(torch_fidelity):
    from torchmetrics.image.fid import FrechetInceptionDistance

    mixing = normal(16, 16, seed=3)
    real, fake = normal(800, seed=1) @ mixing, normal(600, seed=2, scale=1.2, shift=0.3) @ mixing
    metric = FrechetInceptionDistance(feature=Given(16)).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    ours = frechet_distance(FeatureStatistics.from_features(real), FeatureStatistics.from_features(fake))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)


def test_statistics_survive_saving(tmp_path):
    statistics = FeatureStatistics.from_features(normal(100))
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "statistics.safetensors")
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.cov, statistics.cov)
    assert loaded.count == 100


def test_too_few_samples_for_the_covariance_warn():
    with pytest.warns(UserWarning, match="16 samples for 16 features"):
        FeatureStatistics.from_features(normal(16))


def test_kernel_distance_is_near_zero_for_one_distribution_and_not_for_two():
    same = kernel_distance(normal(600, seed=1), normal(600, seed=2), num_subsets=20, subset_size=300)
    other = kernel_distance(normal(600, seed=1), normal(600, seed=2, shift=0.5), num_subsets=20, subset_size=300)
    assert abs(same.mean) < 0.02 < 0.5 < other.mean
    again = kernel_distance(normal(600, seed=1), normal(600, seed=2), num_subsets=20, subset_size=300)
    assert same == again


def test_kernel_distance_equals_torchmetrics(torch_fidelity):
    from torchmetrics.image.kid import poly_mmd

    real, fake = normal(300, seed=1), normal(300, seed=2, scale=1.2, shift=0.3)
    ours = kernel_distance(real, fake, num_subsets=3, subset_size=300)  # each subset is the whole set
    assert ours.mean == pytest.approx(poly_mmd(real.double(), fake.double()).item(), rel=1e-9)
    assert ours.std < 1e-12


def test_kernel_distance_is_unbiased():
    means = [kernel_distance(normal(100, seed=2 * i), normal(100, seed=2 * i + 1), 1, 100).mean for i in range(200)]
    means = torch.tensor(means)
    assert abs(means.mean()) < 3 * means.std() / len(means) ** 0.5


def test_precision_and_recall_of_one_set_are_one():
    features = normal(300)
    assert precision_recall(features, features, chunk=64) == (1.0, 1.0)


def test_precision_and_recall_tell_quality_from_coverage():
    real, narrow, far = normal(400, 4, seed=1), normal(400, 4, seed=2, scale=0.2), normal(400, 4, shift=20)
    precision, recall = precision_recall(real, narrow)
    assert precision > 0.95 and recall < 0.3
    assert precision_recall(real, far) == (0.0, 0.0)


def test_class_accuracy_counts_the_labels_asked_for():
    def classifier(images):
        return images.flatten(1)

    images = torch.eye(4)[[0, 1, 2, 3, 3]].reshape(5, 1, 2, 2)
    labels = torch.tensor([0, 1, 2, 3, 0])
    assert predict_labels(classifier, images, batch_size=2).tolist() == [0, 1, 2, 3, 3]
    assert class_accuracy(classifier, images, labels, batch_size=2) == 0.8
    with pytest.raises(ValueError, match="one label per image"):
        class_accuracy(classifier, images, labels[:3])


def test_paired_distance_of_known_pairs():
    a = torch.zeros(20, 2)
    b = torch.zeros(20, 2)
    b[:, 0] = 1.0
    b[0, 0] = 101.0  # one sample that carries most of the mean
    labels = torch.zeros(20, dtype=torch.int64)
    other = labels.clone()
    other[:5] = 1
    pairs = paired_distance(a, b, labels, other)
    assert (pairs.mean, pairs.median, pairs.trimmed_mean, pairs.flipped) == (6.0, 1.0, 1.0, 0.25)
    assert pairs.values.shape == (20,)
    assert paired_distance(a, a).flipped is None and paired_distance(a, a).mean == 0.0


def test_unpaired_samples_are_the_yardstick():
    features = normal(200)
    pairs = paired_distance(features, features + 0.01)
    assert pairs.mean < 0.05 < 1 < pairs.unpaired


def test_paired_bootstrap_covers_and_is_narrower_than_unpaired():
    inside = 0
    for seed in range(100):
        common = normal(60, 1, seed=seed)[:, 0] * 10  # what makes pairs worth it
        a, b = common + normal(60, 1, seed=1000 + seed)[:, 0] + 0.5, common + normal(60, 1, seed=2000 + seed)[:, 0]
        interval = paired_bootstrap(a, b, num_resamples=300, seed=seed)
        assert interval.low < interval.difference < interval.high and interval.high - interval.low < 1.5
        inside += interval.low <= 0.5 <= interval.high
    assert 88 <= inside <= 99


def test_real_floor_falls_with_the_number_of_samples():
    reference = FeatureStatistics.from_features(normal(5000, seed=1))
    held_out = normal(2000, seed=2)
    few, all_ = real_floor(held_out, reference, 200), real_floor(held_out, reference)
    assert all_.distance < few.distance and (few.num_samples, all_.num_samples) == (200, 2000)
    assert "200 held-out real images" in str(few)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureStatistics.from_features(torch.zeros(3, 4, 5)), r"shape \(n, d\)"),
        (lambda: FeatureStatistics.from_features(torch.zeros(1, 4)), "at least 2 samples, got 1"),
        (lambda: FeatureStatistics.from_features(torch.full((9, 4), torch.nan)), "9 of 9 samples are not finite"),
        (lambda: kernel_distance(normal(50), normal(50)), "at least 1000 samples, got 50"),
        (lambda: precision_recall(normal(50, 4), normal(50, 5)), "d the same throughout"),
        (lambda: precision_recall(normal(3), normal(50)), "at least 4 samples"),
        (lambda: paired_distance(normal(5), normal(6)), "row by row"),
        (lambda: paired_distance(normal(5), normal(5), torch.zeros(5)), "of both or of neither"),
        (lambda: paired_bootstrap(torch.zeros(3), torch.zeros(4)), "expected pairs"),
        (lambda: paired_bootstrap(torch.tensor([1.0, torch.inf]), torch.zeros(2)), "not finite"),
        (lambda: real_floor(normal(50), FeatureStatistics.from_features(normal(50)), 51), "there are 50"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_statistics_of_two_networks_do_not_mix():
    a, b = FeatureStatistics.from_features(normal(50, 4)), FeatureStatistics.from_features(normal(50, 5))
    with pytest.raises(ValueError, match="4 and of 5 features"):
        frechet_distance(a, b)
