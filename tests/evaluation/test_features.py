import pytest
import torch

from ardistill.evaluation import extract_features, feature_network


class Mean(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def images(count: int = 5, channels: int = 1, size: int = 28) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_fashion_classifier_gives_its_features_in_batches():
    network = feature_network("fashion-classifier")
    features = extract_features(network, images(), batch_size=2)
    assert features.shape == (5, network.num_features) == (5, 128)
    assert (network.name, network.fd_name) == ("fashion-classifier", "FD-fashion-classifier")
    torch.testing.assert_close(features, extract_features(network, images()), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_module_and_a_torchscript_file_serve_as_feature_networks(tmp_path):
    torch.jit.script(Mean()).save(tmp_path / "mean.pt")
    of_module, of_file = feature_network(Mean()), feature_network(tmp_path / "mean.pt")
    assert (of_module.fd_name, of_file.fd_name) == ("FD-Mean", "FD-mean")
    expected = images(channels=3).mean(dim=(2, 3))
    assert torch.equal(extract_features(of_module, images(channels=3)), expected)
    assert torch.equal(extract_features(of_file, images(channels=3)), expected)


@pytest.mark.slow
def test_inception_takes_grey_images_and_is_fid_with_its_own_weights_only(torch_fidelity, tmp_path):
    if torch_fidelity is None:
        pytest.skip("torch-fidelity is not installed")
    torch.manual_seed(0)
    network = feature_network("inception", weights="random")
    assert (network.name, network.fd_name, network.num_features) == ("inception-random", "FD-inception-random", 2048)
    grey = images(2)
    features = extract_features(network, grey)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, extract_features(network, grey.expand(-1, 3, -1, -1)))

    inner = torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    pixels = ((grey + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    found = next(cell.cell_contents for cell in network.function.__closure__ if isinstance(cell.cell_contents, inner))
    torch.testing.assert_close(features, found(pixels)[0])

    torch.save(found.state_dict(), tmp_path / "mine.pth")
    reloaded = feature_network("inception", weights=tmp_path / "mine.pth")
    assert reloaded.fd_name == "FD-inception-mine"
    torch.testing.assert_close(features, extract_features(reloaded, grey))
    with pytest.raises(ValueError, match="no Inception weights at"):
        feature_network("inception", weights=tmp_path / "missing.pth")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="fashion-classifier, scenes-detector, inception, or the path of a TorchScript file"
    ):
        feature_network("inceptoin")
    with pytest.raises(ValueError, match="weights are for 'inception' only"):
        feature_network(Mean(), weights="random")


def test_bad_images_and_features_are_refused():
    network = feature_network("fashion-classifier")
    with pytest.raises(ValueError, match=r"expected images of shape \(n, 1, 28, 28\)"):
        extract_features(network, images(size=32))
    with pytest.raises(ValueError, match="expected float images"):
        extract_features(network, torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match="1568 values not finite"):
        extract_features(network, torch.full((2, 1, 28, 28), torch.nan))
    with pytest.raises(ValueError, match=r"Identity: expected features \(2, 28\), got \(2, 1, 28, 28\)"):
        extract_features(feature_network(torch.nn.Identity()), images(2))
