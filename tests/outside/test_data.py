"""Data as users have it: images, labels and prompts are read rightly or refused, never guessed in silence."""

from __future__ import annotations

import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from refusals import Refusal, check_refusal
from safetensors import safe_open
from tiny_pipelines import save

from ardistill import Student, StudentConfig, Teacher, TrajectoryDataset, record, sample
from ardistill.cli import main
from ardistill.core.knots import Knots
from ardistill.evaluation import Judge, draw_samples, feature_network, run_of
from ardistill.files.images import ImageReader, find_images, open_images
from ardistill.publishing import export, load
from ardistill.training import encode as encode_images
from ardistill.training.labelled_images import _of_data_set
from ardistill.training.labels import match_classes
from ardistill.training.real_images import load_real, save_real
from ardistill.trajectories import load_prompts

QUIET = {"solver_steps": 4, "num_steps": (2,), "shard_size": 4, "progress": False}
ID2LABEL = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 3: "crane", 4: "n01440764 ray_fish"}


def with_names(folder, id2label):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": id2label}))
    return folder


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """A teacher of five classes and 16x16 pixels without names, and one with."""
    folder = tmp_path_factory.mktemp("dit")
    save("dit", folder / "plain")
    shutil.copytree(folder / "plain", folder / "named")
    with_names(folder / "named", {str(k): v for k, v in ID2LABEL.items()})
    return folder


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Held-out trajectories, and a run whose folder is called student."""
    folder = tmp_path_factory.mktemp("fashion")
    options = ["--teacher", "zoo/fashion", "--guidance_scale", "1.25", "--solver_steps", "4", "--num_steps", "[2]"]
    for name, seed in (("train", "0"), ("held", "1")):
        main(["record", *options, "--num_trajectories", "10", "--seed", seed, "--out", f"{folder}/{name}"])
    main(
        ["distill", "--trajectories", f"{folder}/train", "--out", f"{folder}/student", "--num_steps", "2"]
        + ["--history_layers", "1", "--training.max_steps", "1", "--training.batch_size", "2"]
        + ["--training.tracker", "null"]
    )
    return folder


def picture(path, colour=(200, 30, 60), size=(16, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def encoded_labels(images, teacher, tmp_path):
    loaded = Teacher.from_pretrained(teacher)
    encode_images(str(images), loaded, tmp_path / "real.safetensors")
    with safe_open(str(tmp_path / "real.safetensors"), "pt") as file:
        described = json.loads(file.metadata()["labels"])
    return load_real(tmp_path / "real.safetensors", loaded)[1]["class_labels"].tolist(), described


# -- case 14: labels


def test_case_14_numbers_are_classes_themselves(dit, tmp_path, caplog):
    for name in ("0", "4", "03"):
        picture(tmp_path / "images" / name / "a.png")
    labels, described = encoded_labels(tmp_path / "images", dit / "plain", tmp_path)
    assert labels == [0, 3, 4]  # of 0, 03, 4
    assert described == {"classes": {"0": 0, "03": 3, "4": 4}, "rule": "by number"}
    assert "labels by number: 0 -> 0, 03 -> 3, 4 -> 4" in caplog.text
    picture(tmp_path / "images" / "12" / "a.png")
    with pytest.raises(ValueError, match="'12' is no class: the teacher has 5, numbered 0 to 4"):
        encoded_labels(tmp_path / "images", dit / "plain", tmp_path)


def test_case_14_the_teachers_names_decide_where_they_match(dit, tmp_path, caplog):
    for name in ("Goldfish", "Tinca_tinca", "n01440764"):
        picture(tmp_path / "images" / name / "deeper" / "a.png")
    labels, described = encoded_labels(tmp_path / "images", dit / "named", tmp_path)
    assert labels == [1, 0, 4] and described["rule"] == "by id2label"
    assert "Tinca_tinca -> 0 (tench, Tinca tinca)" in caplog.text


def test_case_14_sorted_names_are_told_and_only_of_all_classes(dit, tmp_path, caplog):
    names = ["ant", "bee", "cow", "dog", "elk"]
    for name in names:
        picture(tmp_path / "images" / name / "a.png")
    labels, described = encoded_labels(tmp_path / "images", dit / "plain", tmp_path)
    assert labels == [0, 1, 2, 3, 4] and described["classes"] == dict(zip(names, range(5), strict=True))
    assert "in the sorted order of the names: ant -> 0, bee -> 1" in caplog.text
    shutil.rmtree(tmp_path / "images" / "ant")
    with pytest.raises(ValueError, match=r"5 classes, found 4 .*: which they are is not known; name the folders"):
        encoded_labels(tmp_path / "images", dit / "plain", tmp_path)


def test_case_14_metadata_names_images_and_classes(dit, tmp_path):
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "metadata.csv").write_text("file_name,label\r\n2.png,4\r\n0.png,1\r\n")
    labels, described = encoded_labels(tmp_path / "images", dit / "plain", tmp_path)
    assert labels == [4, 1] and described["rule"] == "by number"


def test_case_14_class_names_of_a_data_set_are_matched_alike(dit, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["goldfish", "tench"])})
    rows = {"image": [Image.new("L", (9, 16), 90)] * 3, "label": [0, 1, 0]}
    (tmp_path / "me" / "fish").mkdir(parents=True)  # as a Hub id is read, from a folder of that name
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "me" / "fish" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = _of_data_set("me/fish", Teacher.from_pretrained(dit / "named"))
    assert found.values == [1, 0, 1] and found.labels["rule"] == "by id2label"
    assert ImageReader().read(found.first(2).images[1]).size == (9, 16) and len(found.first(2).images) == 2
    with pytest.raises(ValueError, match=r"me/fish: the teacher has 5 classes, found 2 .* which they are is not known"):
        _of_data_set("me/fish", Teacher.from_pretrained(dit / "plain"))


def test_a_real_file_of_another_vae_is_refused(dit, tmp_path):
    teacher = Teacher.from_pretrained(dit / "plain")
    picture(tmp_path / "images" / "0" / "a.png")
    encode_images(str(tmp_path / "images"), teacher, tmp_path / "real.safetensors")
    torch.nn.init.normal_(next(teacher.companions["vae"].parameters()))
    with pytest.raises(ValueError, match=r"another VAE .* make it again"):
        load_real(tmp_path / "real.safetensors", teacher)
    save_real(tmp_path / "old.safetensors", torch.zeros(1, 4, 8, 8), {"class_labels": torch.zeros(1).long()})
    load_real(tmp_path / "old.safetensors", teacher)  # does not say


# -- case 15: modes and bit depths


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


# -- case 16: prompts


def test_case_16_each_kind_of_file_is_read_as_what_it_is(tmp_path):
    expected = ["a cat, red", "the moon", "a cat, red"]
    rows = [{"prompt": x, "id": i} for i, x in enumerate(expected)]
    files = {
        "a.txt": "\ufeffa cat, red\r\n\r\nthe moon\r\na cat, red",
        "a.JSONL": "\n".join(json.dumps(row) for row in rows) + "\n\n",
        "b.jsonl": "\n".join(map(json.dumps, expected)),
        "a.json": json.dumps(rows),
        "b.json": json.dumps(expected),
        "a.csv": '\ufeffid,Prompt\r\n0,"a cat, red"\r\n1,the moon\r\n\r\n2,"a cat, red"\r\n',
        "a.tsv": "Prompt\tCategory\na cat, red\tx\nthe moon\ty\na cat, red\tz\n",
        "two.csv": 'text,caption\nx,"a cat, red"\ny,the moon\nz,"a cat, red"\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"caption": expected, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    for name in [*files, "a.parquet"]:
        column = ":caption" if name == "two.csv" else ""
        assert load_prompts(f"{tmp_path}/{name}{column}") == expected, name


# -- case 17: a run is where the user put it


def test_case_17_a_run_called_student_is_itself(fashion, capsys):
    assert run_of(f"{fashion}/student") == (fashion / "student", "")
    assert run_of(f"{fashion}/student/student") == (fashion / "student", "")
    (step,) = (fashion / "student" / "checkpoints").glob("step-*")
    assert run_of(str(step)) == (fashion / "student", f"-{step.name}")
    with pytest.raises(SystemExit):
        main(["evaluate", "--student", f"{fashion}/student", "--trajectories", f"{fashion}/train"])
    assert "expected held-out trajectories" in capsys.readouterr().err
    main(["evaluate", "--student", f"{fashion}/student", "--trajectories", f"{fashion}/held", "--json"])
    assert {"student", "teacher", "solver_2"} == set(json.loads(capsys.readouterr().out)["arms"])
    assert (fashion / "student" / "evaluation" / "report.html").is_file() and not (fashion / "evaluation").exists()
    main(["export", "--student", f"{fashion}/student", "--out", f"{fashion}/exported", "--json"])
    assert json.loads(capsys.readouterr().out)["evaluated"] is True


def test_case_17_a_link_is_followed_to_what_it_was_trained_on(fashion, tmp_path, capsys):
    (step,) = (fashion / "student" / "checkpoints").glob("step-*")
    for name, target in (("best", fashion / "student" / "student"), ("at", step)):
        (tmp_path / name).symlink_to(target)
        words = ["evaluate", "--student", f"{tmp_path}/{name}", "--out", f"{tmp_path}/out"]
        with pytest.raises(SystemExit):
            main([*words, "--trajectories", f"{fashion}/train"])
        assert "expected held-out trajectories" in capsys.readouterr().err


def test_case_17_what_cannot_be_checked_is_said(fashion, tmp_path, capsys):
    shutil.copytree(fashion / "student" / "student", tmp_path / "student")  # its run is not there
    assert run_of(str(tmp_path / "student")) == (tmp_path / "student", "")
    out = ["--out", str(tmp_path / "out")]
    main(["evaluate", "--student", str(tmp_path / "student"), "--trajectories", f"{fashion}/train", *out])
    assert "not checked whether the trajectories are held out" in capsys.readouterr().err
    shutil.copytree(fashion / "student", tmp_path / "later")
    settings = json.loads((tmp_path / "later" / "config.json").read_text())
    settings.pop("seal")
    settings |= {"data": settings["data"] | {"seed": 7}, "start": {"student": f"{fashion}/student"}}
    (tmp_path / "later" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):  # it began as a student of these trajectories
        main(["evaluate", "--student", f"{tmp_path}/later", "--trajectories", f"{fashion}/train", *out])
    assert "expected held-out trajectories" in capsys.readouterr().err


# -- case 18: guidance


def test_case_18_guidance_is_what_it_was_distilled_at(tmp_path):
    teacher = Teacher.from_pretrained(save("flux", tmp_path / "teacher"), guidance_scale=2.0, height=16, width=16)
    record(teacher, tmp_path / "data", 4, prompts=["a cat", "a dog"], **QUIET)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1))
    export(student, teacher, tmp_path / "export")
    pipeline = load(tmp_path / "export")
    pipeline.set_progress_bar_config(disable=True)
    noise, condition = data.stacked(slice(2))[0][:, 0], data.condition(slice(2))
    pipeline("a cat", height=16, width=16, guidance_scale=2.0, output_type="latent")
    sample(student, noise, condition)
    for draw in (
        lambda: pipeline("a cat", height=16, width=16, guidance_scale=7.0),
        lambda: sample(student, noise, condition | {"guidance": torch.tensor([2.0, 7.0])}),
        lambda: draw_samples(student, teacher, tmp_path / "a.png", prompts=["a cat"], guidance_scale=7.0),
    ):
        with pytest.raises(ValueError, match=r"distilled at guidance 2 alone, got .*7; leave the scale out"):
            draw()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_case_18_the_ends_of_a_range_are_in_it_in_every_dtype(dtype):
    knots = Knots("flow", (1000.0, 500.0), (0.0, 0.5, 1.0), (1.0, 0.5, 0.0))
    config = StudentConfig(knots, history_layers=0, guidance_range=(1.1, 7.3), fingerprint="x")
    for scale in (1.1, 7.3):
        config.check_guidance(torch.tensor([scale], dtype=dtype))
        config.check_guidance(scale)
    for scale in (1.0, 7.5):
        with pytest.raises(ValueError, match=r"distilled at guidance 1\.1 to 7\.3"):
            config.check_guidance(torch.tensor([scale], dtype=dtype))


# -- case 19: files of a reference


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


# -- case 23, and what else is refused


@pytest.fixture(scope="module")
def made(tmp_path_factory, dit):
    """Folders and files with a fault each."""
    folder = tmp_path_factory.mktemp("made")
    whole = picture(folder / "whole" / "a.jpg", size=(64, 64)).read_bytes()
    for name in ("cut/0/a.jpg", "cutref/a.jpg"):
        picture(folder / name).write_bytes(whole[: len(whole) // 2])
    picture(folder / "torn/0/a.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    for name in ("cat", "dog"):
        picture(folder / "words" / name / "a.png")
        picture(folder / "partial" / {"cat": "goldfish", "dog": "whale"}[name] / "a.png")
    picture(folder / "lone" / "cat" / "a.png")
    picture(folder / "flat" / "a.png")
    picture(folder / "twice" / "crane" / "a.png")
    picture(folder / "splits" / "train" / "a.png")
    for i in range(5):
        picture(folder / "order" / f"class{i + 8}" / "a.png")
    picture(folder / "sizes" / "a.png", size=(28, 28))
    picture(folder / "sizes" / "b.png", size=(28, 30))
    picture(folder / "colour" / "a.png", size=(28, 28))
    picture(folder / "few" / "a.png", 7, size=(28, 28), mode="L")
    (folder / "none").mkdir()
    (folder / "none" / "notes.md").touch()
    picture(folder / "rows" / "a.png")
    (folder / "rows" / "metadata.jsonl").write_text('{"file_name": "b.png", "label": 1}')
    picture(folder / "blank" / "a.png")
    (folder / "blank" / "metadata.csv").write_text("file_name,label\na.png,\n")
    np.savez(folder / "statistics.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    np.savez(folder / "floats.npz", arr_0=np.zeros((2, 4, 4, 3)))
    (folder / "no.npz").write_bytes(b"x")
    for name, text in {
        "plain.yaml": "a cat", "two.csv": "text,caption\na,b\n", "none.csv": "id,words\n1,a\n",
        "ragged.csv": "prompt,id\na cat, red,1\n", "empty.csv": "prompt\n", "null.jsonl": '{"prompt": null}',
        "object.json": '{"prompts": ["a"]}', "mixed.json": '["a", {"prompt": "b"}]', "blank.tsv": "prompt\tid\n\t1\n",
        "same.csv": "prompt,prompt\na,b\n", "half.jsonl": r'{"prompt": "a \ud83d"}', "deep.json": "[" * 100_000,
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    (folder / "wide.txt").write_bytes("a cat".encode("utf-16"))
    return folder


def encode(images, name="plain"):
    def act(made, dit, fashion):
        encode_images(str(made / images), Teacher.from_pretrained(dit / name), made / "real.safetensors")

    return act


def prompts(name):
    return lambda made, dit, fashion: load_prompts(str(made / name))


def evaluate(reference, features="fashion-classifier"):
    def act(made, dit, fashion):
        words = ["evaluate", "--student", f"{fashion}/student", "--trajectories", f"{fashion}/held", "--debug"]
        main([*words, "--out", f"{made}/report", "--features", features, "--reference", f"{made}/{reference}"])

    return act


REFUSALS = {
    "case 23: a truncated image": Refusal(encode("cut"), r"cut/0/a\.jpg cannot be read as an image", "replace it"),
    "a file that is no image": Refusal(encode("torn"), r"torn/0/a\.png cannot be read as an image", "replace it"),
    "a truncated reference": Refusal(evaluate("cutref"), r"cutref/a\.jpg (cannot be read|has colour)", "replace|give"),
    "names of two classes of five": Refusal(encode("words"), "5 classes, found 2", "name the folders by the classes'"),
    "case 24: one class folder": Refusal(encode("lone"), "5 classes, found 1", "0 to 4"),
    "images without class": Refusal(encode("flat"), r"found images beside none \(a.png\)", "move each into the folder"),
    "a name of two classes": Refusal(encode("twice", "named"), "the name of the teacher's classes 2 and 3", "name the"),
    "names of which one is no class": Refusal(encode("partial", "named"), "whale: no class", "rename them after"),
    "splits": Refusal(encode("splits"), "train are parts of a data set", "give the path of one"),
    "names in an uncertain order": Refusal(encode("order"), "order of .* is not certain", "name the folders by"),
    "metadata of an image that is not there": Refusal(encode("rows"), "1 of 1 rows name no image", "add the images"),
    "metadata without a label": Refusal(encode("blank"), "row 1: expected a class's number or name", "mend the row"),
    "a limit below 1": Refusal(
        lambda made, dit, _: encode_images("x", Teacher.from_pretrained(dit / "plain"), "y", limit=-1),
        "limit of 1 image or more, got -1",
        "leave it out",
    ),
    "a folder without images": Refusal(evaluate("none"), r"found none; it holds notes\.md", r"images \(.*webp"),
    "sizes": Refusal(evaluate("sizes"), r"a\.png is 28x28 and b\.png is 28x30", "scale them alike"),
    "colour beside grey": Refusal(evaluate("colour"), "a.png has colour", "give grey images"),
    "too few": Refusal(evaluate("few"), "6 real images or more", "give thousands"),
    "case 24: statistics": Refusal(evaluate("statistics.npz"), "found statistics", "give a folder of images or such"),
    "floats": Refusal(evaluate("floats.npz"), "found float64 of shape", "give a folder of images or such a file"),
    "no archive": Refusal(evaluate("no.npz"), "cannot be read as one", "give a folder of images or such a file"),
    "no reference": Refusal(evaluate("absent"), "expected a folder of images, found none", "give the path"),
    "case 16: an unknown kind": Refusal(prompts("plain.yaml"), r"known kind \(\.txt, .*, got \.yaml", "name it after"),
    "two columns": Refusal(prompts("two.csv"), "found text and caption", r"name the right one, as in two\.csv:text"),
    "no such column": Refusal(prompts("none.csv"), "found id, words", "name the right one"),
    "a comma without quotes": Refusal(prompts("ragged.csv"), "row 2: expected 2 fields", "put quotes"),
    "a header alone": Refusal(prompts("empty.csv"), "holds no prompts", "give a file with one or more"),
    "null": Refusal(prompts("null.jsonl"), "prompt 1: expected text, got None", "mend the row"),
    "an empty prompt": Refusal(prompts("blank.tsv"), "prompt 1: expected text, got an empty one", "mend the row"),
    "an object": Refusal(prompts("object.json"), "expected a list .* got an object with the keys prompts", "save the"),
    "mixed rows": Refusal(prompts("mixed.json"), "objects alone or strings alone", "write all rows alike"),
    "two columns of one name": Refusal(prompts("same.csv"), "different names, found prompt twice", "rename one"),
    "half a character": Refusal(prompts("half.jsonl"), r"prompt 1: .* got half of one in 'a .ud83d'", "take it out"),
    "JSON without end": Refusal(prompts("deep.json"), "is not JSON", "save one object a line"),
    "UTF-16": Refusal(prompts("wide.txt"), "cannot be read as text", "save it as UTF-8"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name, made, dit, fashion, capsys):
    check_refusal(REFUSALS[name], capsys, made, dit, fashion)
    assert not (made / "real.safetensors").exists() and not (made / "report").exists()


def test_matching_of_names():
    assert match_classes(["b", "a"], 2, {}, in_order=True).classes == {"b": 0, "a": 1}
    assert match_classes(["10", "9"], 11, {}).classes == {"9": 9, "10": 10}
    assert match_classes(["1"], 5, {0: "1", 1: "2"}).classes == {"1": 0}  # the teacher's own word for it
    with pytest.raises(ValueError, match="two of 1, 01 are one class"):
        match_classes(["1", "01"], 5, {})


def test_the_order_of_a_data_set_that_is_the_teachers_decides():
    """ImageNet's: two classes are called crane, and the Hub's data set calls one of them crane2."""
    names = ["tench, Tinca tinca", "goldfish", "crane", "crane2", "ray_fish"]
    found = match_classes(names, 5, ID2LABEL, in_order=True)
    assert list(found.classes.values()) == [0, 1, 2, 3, 4] and "own order, as id2label" in found.rule
    with pytest.raises(ValueError, match="the name of the teacher's classes 2 and 3"):  # of folders it is not known
        match_classes(names, 5, ID2LABEL)
    swapped = ["goldfish", "tench", "ant", "bee", "cow"]
    with pytest.raises(ValueError, match="no class of the teacher is called so"):
        match_classes(swapped, 5, ID2LABEL, in_order=True)


def test_prompts_given_in_python_are_prompts(tmp_path):
    teacher = Teacher.from_pretrained(save("sd3", tmp_path / "teacher"), guidance_scale=1.0)
    for given, message in (
        ("a cat", r"list of prompts, got the text 'a cat'; give \['a cat'\]"),  # else five prompts of one letter
        (["a cat", 3], "prompt 2: expected text, got 3"),
        (["a \ud83d"], "whole characters"),
    ):
        with pytest.raises(ValueError, match=message):
            record(teacher, tmp_path / "data", 2, prompts=given, **QUIET)
    assert not (tmp_path / "data").exists()
    record(teacher, tmp_path / "data", 2, prompts=np.array(["a cat", "a dog"]), **QUIET)
    assert TrajectoryDataset(tmp_path / "data", 2).prompts == ["a cat", "a dog"]


def test_columns_that_are_no_text_are_told(tmp_path, caplog):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": [["a"], ["b"]], "n": [1, 2]}), tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match="expected a column prompt or text or caption, one alone, found n;"):
        load_prompts(str(tmp_path / "lists.parquet"))
    assert "neither text nor numbers are left out: prompt (list<" in caplog.text


def test_prompts_that_are_too_long_are_counted(tmp_path, caplog):
    teacher = Teacher.from_pretrained(save("sd3", tmp_path / "teacher"), guidance_scale=1.0)
    with caplog.at_level(logging.WARNING, logger="ardistill"):
        record(teacher, tmp_path / "data", 2, prompts=["a cat", "a red cat on the moon"], **QUIET)
    assert "1 of 2 prompts are longer than the 12 tokens of tokenizer" in caplog.text
