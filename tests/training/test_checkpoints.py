"""A checkpoint is either whole or skipped."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from ardistill.files import checkpoints

TREE = {
    "step": 2,
    "student": {"a.weight": torch.randn(3, 4), "b": torch.tensor(7.0)},
    "optimizer": {"state": {"a.weight": {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1, "params": ["a"]}]},
    "ema": {"shadow": {"a.weight": torch.randn(3, 4)}, "decay": 0.1 + 0.2, "nothing": None},
}


def zeroed(tree):
    return {
        k: torch.zeros_like(v) if isinstance(v, torch.Tensor) else zeroed(v) if isinstance(v, dict) else 0
        for k, v in tree.items()
    }


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4, 6):
        checkpoints.save(tmp_path / "c", step, TREE | {"step": step}, keep=2)
    return tmp_path / "c"


def test_loaded_equals_saved_and_the_last_ones_are_kept(folder):
    assert sorted(x.name for x in folder.iterdir()) == ["step-00000004", "step-00000006"]
    path = checkpoints.newest(folder)
    assert path.name == "step-00000006"
    assert equal(checkpoints.load(path, zeroed(TREE)), TREE | {"step": 6})
    assert checkpoints.newest(folder / "none") is None


def test_many_tensors_are_written_to_several_files_and_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 100)
    weights = {str(i): torch.randn(20) for i in range(40)} | {"large": torch.randn(100), "small": torch.ones(1)}
    tree = {"student": weights}
    path = checkpoints.save(tmp_path, 1, tree, keep=1)
    assert 8 < len([*path.glob("*.safetensors")]) < 32
    assert equal(checkpoints.load(path, zeroed(tree)), tree)
    checkpoints.check(path)


def test_the_newest_is_so_by_its_step_whatever_the_clock_said(folder):
    os.utime(folder / "step-00000006", (0, 0))
    os.utime(folder / "step-00000004", (4e9, 4e9))
    assert checkpoints.newest(folder).name == "step-00000006"
    checkpoints.save(folder, 8, TREE | {"step": 8}, keep=2)
    assert sorted(x.name for x in folder.iterdir()) == ["step-00000006", "step-00000008"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "shard-00001-model-00001-of-00001.safetensors"])
def test_a_damaged_one_is_reported_and_the_one_before_it_used(folder, caplog, name, damage):
    damage(folder / "step-00000006" / name)
    assert checkpoints.newest(folder).name == "step-00000004"
    [line] = caplog.messages
    assert "step-00000006 is broken (" in line and "the one before it is used" in line and "\n" not in line
    checkpoints.save(folder, 6, TREE | {"step": 6}, keep=2)
    assert checkpoints.newest(folder).name == "step-00000006"


def test_every_flipped_bit_of_the_manifest_is_seen_or_harmless(folder):
    path = folder / "step-00000006" / "manifest.json"
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        try:
            found = checkpoints.newest(folder)
        except ValueError as error:
            assert "update the package" in str(error)  # the flip made the version a newer one
            continue
        assert found.name == "step-00000004" or json.loads(path.read_bytes())["files"] == json.loads(whole)["files"]


def test_what_was_never_published_is_no_checkpoint(folder):
    (folder / "step-00000006").rename(folder / "step-00000008.tmp")
    assert checkpoints.newest(folder).name == "step-00000004"
    checkpoints.save(folder, 6, TREE, keep=1)
    assert [x.name for x in folder.iterdir()] == ["step-00000006"]


def test_a_later_broken_one_does_not_push_out_a_whole_one(folder):
    cut(folder / "step-00000006" / "state.json")
    checkpoints.save(folder, 5, TREE | {"step": 5}, keep=1)
    assert [x.name for x in folder.iterdir()] == ["step-00000005"]


def test_bad_ones_are_named(folder):
    manifest = folder / "step-00000006" / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"version": 2}))
    with pytest.raises(ValueError, match="version 2, this ardistill reads 1; update"):
        checkpoints.newest(folder)
    manifest.write_text(json.dumps(facts | {"files": facts["files"] | {"../x": {}}}))
    assert checkpoints.newest(folder).name == "step-00000004"
    (folder / "step-00000004" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no whole checkpoint in .* 2 broken ones"):
        checkpoints.newest(folder)


def test_it_must_fit_the_run(folder):
    with pytest.raises(ValueError, match="does not fit this run"):
        checkpoints.load(folder / "step-00000006", {"student": {"other": torch.zeros(1)}})
    with pytest.raises(ValueError, match="does not fit this run"):
        checkpoints.load(folder / "step-00000006", {"student": {"a.weight": torch.zeros(5, 4)}})


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "rename", "mkdir"])
def test_a_full_disk_leaves_those_before_it_whole(folder, monkeypatch, call):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = checkpoints.newest(folder)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(Path if call in ("open", "replace", "rename", "mkdir") else os, call, full)
        checkpoints.save(folder, 8, TREE, keep=2)
    assert checkpoints.newest(folder) == before
    checkpoints.save(folder, 8, TREE, keep=2)
    assert checkpoints.newest(folder).name == "step-00000008"
    shutil.rmtree(folder)
