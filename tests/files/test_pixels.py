import pytest
import torch

from ardistill.files.pixels import from_bytes, to_bytes, to_pictures, to_rgb


def test_all_bytes_survive_the_way_to_an_image_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    images = from_bytes(pixels)
    assert images.dtype == torch.float32 and (images[0], images[-1]) == (-1, 1)
    assert torch.equal(to_bytes(images), pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_are_rounded_and_clamped(dtype):
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=dtype)
    assert to_bytes(images).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_three_channels_in_the_layout_of_files(channels):
    images = torch.rand(2, channels, 4, 5) * 2 - 1
    pixels = to_rgb(images)
    assert pixels.shape == (2, 4, 5, 3) and pixels.is_contiguous()
    assert torch.equal(pixels.permute(0, 3, 1, 2), to_bytes(images).expand(-1, 3, -1, -1))
    picture = to_pictures(images)[1]
    assert (picture.mode, picture.size) == ("RGB", (5, 4))
    assert picture.getpixel((4, 3)) == tuple(pixels[1, 3, 4].tolist())
