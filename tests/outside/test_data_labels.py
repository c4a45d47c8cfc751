"""Labels of real images: classes are matched by number or name, or refused with what to do."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from pictures import ID2LABEL, picture, save_teachers
from PIL import Image
from safetensors import safe_open

from ardistill import Teacher
from ardistill.files.images import ImageReader
from ardistill.training import encode as encode_images
from ardistill.training.labelled_images import _of_data_set
from ardistill.training.labels import match_classes
from ardistill.training.real_images import load_real, save_real


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return save_teachers(tmp_path_factory.mktemp("dit"))


def encoded_labels(images, teacher, tmp_path):
    loaded = Teacher.from_pretrained(teacher)
    encode_images(str(images), loaded, tmp_path / "real.safetensors")
    with safe_open(str(tmp_path / "real.safetensors"), "pt") as file:
        described = json.loads(file.metadata()["labels"])
    return load_real(tmp_path / "real.safetensors", loaded)[1]["class_labels"].tolist(), described


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
