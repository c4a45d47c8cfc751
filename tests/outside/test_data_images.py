"""Image files of every kind, mode and depth become the right pixels; nothing is left out silently."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image, ImageCms

from ardistill.evaluation import Judge, feature_network
from ardistill.files.images import ImageReader, find_images, open_images


def deep(path, dtype="<u2"):
    values = (np.arange(256).reshape(16, 16) * 257).astype(dtype)
    Image.fromarray(values.astype(np.uint16)).save(path)
    return np.arange(256).reshape(16, 16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.pgm"])
def test_case_15_sixteen_bits_are_scaled(tmp_path, name):
    expected = deep(tmp_path / name)
    found = np.asarray(ImageReader().read(tmp_path / name))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_case_15_other_depths(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "float.tif")
    assert np.array_equal(np.asarray(ImageReader().read(tmp_path / "float.tif")).ravel(), np.arange(256))
    big = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    ifd = {262: 1}
    Image.frombytes("I;16B", (16, 16), big.astype(">u2").tobytes()).save(tmp_path / "big.tif", tiffinfo=ifd)
    assert np.array_equal(np.asarray(ImageReader().read(tmp_path / "big.tif")).ravel(), np.arange(256))
    for array, message in (
        (ramp * 255, "from 0 to 1, got 0 to 255; save it as a PNG"),
        (np.full((4, 4), 100_000, np.int32), "32-bit ones from 100000 to 100000; save it as a PNG"),
    ):
        Image.fromarray(array).save(tmp_path / "wide.tif")
        with pytest.raises(ValueError, match=message):
            ImageReader().read(tmp_path / "wide.tif")


def test_case_15_every_mode_is_the_colour_that_it_was(tmp_path):
    red = Image.new("RGB", (8, 8), (200, 40, 40))
    lab = ImageCms.applyTransform(
        red, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )
    for mode, suffix, tolerance in (
        ("P", "png", 0), ("CMYK", "jpg", 4), ("YCbCr", "jpg", 4), ("RGBA", "png", 0), ("RGB", "webp", 4),
        ("RGB", "bmp", 0), ("RGB", "gif", 8), ("RGB", "ppm", 0), ("RGB", "tif", 0),
    ):  # fmt: skip
        (red.quantize(8) if mode == "P" else red.convert(mode)).save(tmp_path / f"x.{suffix}")
        found = ImageReader().read(tmp_path / f"x.{suffix}")
        assert found.mode == "RGB" and np.abs(np.asarray(found).astype(int) - (200, 40, 40)).max() <= tolerance, mode
    lab.save(tmp_path / "lab.tif")
    assert np.abs(np.asarray(ImageReader().read(tmp_path / "lab.tif")).astype(int) - (200, 40, 40)).max() <= 4
    for mode, value in (("1", 1), ("L", 255), ("LA", (255, 255))):
        Image.new(mode, (4, 4), value).save(tmp_path / "grey.png")
        found = ImageReader().read(tmp_path / "grey.png")
        assert found.mode == "L" and np.asarray(found).min() == 255


def test_transparency_frames_and_orientation_are_said_once(tmp_path, caplog):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    for name in ("a.png", "b.png"):
        clear.save(tmp_path / name)
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
    reader = ImageReader()
    assert all(np.asarray(reader.read(tmp_path / name)).min() == 255 for name in ("a.png", "b.png"))
    assert np.asarray(reader.read(tmp_path / "c.gif"))[0, 0].tolist() == [255, 0, 0] or "frames" in caplog.text
    assert caplog.text.count("laid on white") == 1 and caplog.text.count("the first one is taken") == 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(reader.read(tmp_path / "p.png")).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert reader.read(tmp_path / "turned.jpg").size == (4, 8)
    picture(tmp_path / "sub" / "upright.jpg", size=(4, 8))
    (tmp_path / "turned.jpg").rename(tmp_path / "sub" / "turned.jpg")
    assert open_images(tmp_path / "sub").size == (4, 8)


def test_case_15_a_deep_reference_is_not_white(tmp_path):
    for i in range(3):
        deep(tmp_path / f"{i}.png")
    (batch,) = open_images(tmp_path, 1, progress=False)
    assert batch.shape == (3, 1, 16, 16) and batch.min() == -1 and abs(batch.mean()) < 0.01


TURNED = {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "CMYK"])
def test_turned_tiff_files_have_their_size_and_pixels(tmp_path, mode):
    """Pillow maps uncompressed ones given by path, and mixes up their pixels; their header's size is turned already."""
    upright = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10) * 4)
    for orientation, how in TURNED.items():
        stored = np.asarray(upright.transpose(Image.Transpose[how]))
        image = Image.fromarray(stored.astype(np.uint16) * 257 if mode == "I;16" else stored)
        image.convert(mode).save(tmp_path / "a.tif", tiffinfo={274: orientation})
        found = ImageReader().read(tmp_path / "a.tif")
        assert np.array_equal(np.asarray(found.convert("L")), np.asarray(upright)), orientation
        assert open_images(tmp_path, progress=False).size == found.size == (10, 6)


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    picture(tmp_path / "0" / "a.png")
    picture(tmp_path / "1" / "a.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"1 cannot be read \(Permission denied\); allow it, or take it out"):
        find_images(tmp_path)


def test_warnings_of_pillow_are_not_the_users(tmp_path, recwarn):
    picture(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    broken = b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff"  # tags beyond the end
    (tmp_path / "a.jpg").write_bytes(whole[:2] + broken + whole[2:])
    assert open_images(tmp_path, progress=False).size == (16, 16) and not list(recwarn)


def test_case_19_nothing_is_left_out_in_silence(tmp_path, caplog):
    for name in ("a.png", "b.WEBP", "c.JPG", "d.bmp", "e.tif", "sub/f.Png", ".hidden.png", ".ipynb_checkpoints/g.png"):
        path = picture(tmp_path / "real" / name.lower())
        path.parent.joinpath(name.rpartition("/")[2]).write_bytes(path.read_bytes())
    (tmp_path / "real" / ".DS_Store").touch()
    (tmp_path / "real" / "x.heic").write_bytes(b"x")
    picture(tmp_path / "elsewhere" / "h.png")
    (tmp_path / "real" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real" / "linked" / "loop").symlink_to(tmp_path / "real")
    found = {str(path.relative_to(tmp_path / "real")) for path in find_images(tmp_path / "real")}
    assert {"a.png", "b.WEBP", "c.JPG", "d.bmp", "e.tif", "sub/f.Png", "linked/h.png"} <= found
    assert not any("hidden" in x or "ipynb" in x or "loop" in x for x in found)
    assert "1 files are not read as images: x.heic" in caplog.text


def test_the_reference_and_its_floor_have_all_classes(tmp_path):
    """Images come sorted by class: were they cut as they come, the floor would be of other classes."""
    network = feature_network(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2)))
    for i in range(60):
        picture(tmp_path / f"{i // 30}" / f"{i:02}.png", (255 * (i // 30),) * 3, (4, 4))
    real = open_images(tmp_path, 3, progress=False)
    judge = Judge.of_images(network, real)
    assert len(judge.real_features) == 40 and len(judge.held_out_features) == 20
    for part in (judge.real_features, judge.held_out_features):
        assert 0.2 < (part[:, 0] == part[0, 0]).float().mean() < 0.8


def test_an_archive_for_adms_suite_is_a_reference(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
    for save_array in (np.savez, np.savez_compressed):
        save_array(tmp_path / "x.npz", arr_0=pixels, mu=np.zeros(3))
        found = open_images(tmp_path / "x.npz", 3, progress=False)
        assert (len(found), found.size) == (7, (5, 4))
        batches = torch.cat(list(found))
        assert torch.equal(((batches + 1) * 127.5).round().byte().permute(0, 2, 3, 1), torch.from_numpy(pixels))


def test_grey_is_not_compared_with_colour(tmp_path):
    picture(tmp_path / "grey" / "a.png", 9, mode="L")
    picture(tmp_path / "grey" / "b.png", (9, 9, 9))  # grey pixels of a colour file
    assert next(iter(open_images(tmp_path / "grey", 1, progress=False))).shape == (2, 1, 16, 16)
    assert next(iter(open_images(tmp_path / "grey", 3, progress=False))).shape == (2, 3, 16, 16)
