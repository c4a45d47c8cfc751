"""Checkpoints that a thread writes from a copy are those that the caller would have written."""

import threading

import pytest
import torch

from ardistill.files import checkpoints
from ardistill.files.checkpoint_writer import CheckpointWriter


def tree(value):
    groups = [{"lr": 0.1, "params": ["a"]}]
    return {"step": 2, "student": {"a": torch.full((3, 4), value)}, "optimizer": {"param_groups": groups}}


def read(folder):
    """Every checkpoint in a folder; its files' bytes vary, as safetensors orders the facts in a header at random."""
    return {path.name: checkpoints.load(path, tree(0.0)) for path in folder.iterdir() if not checkpoints.check(path)}


def test_what_is_written_is_what_was_there_when_it_was_saved(tmp_path, monkeypatch):
    go_on, write = threading.Event(), checkpoints.write
    monkeypatch.setattr(checkpoints, "write", lambda *args: (go_on.wait(), write(*args))[1])
    with CheckpointWriter(tmp_path / "aside", keep=2, aside=True) as writer:
        for step in (2, 4):
            state = tree(float(step))
            writer.save(step, state, good=0)  # the second waits for the first
            state["student"]["a"].zero_()
            state["optimizer"]["param_groups"][0]["lr"] = 0.0
            assert (tmp_path / "aside" / "step-00000002").exists() == (step == 4)
            go_on.set()
    with CheckpointWriter(tmp_path / "at-once", keep=2, aside=False) as writer:
        for step in (2, 4):
            writer.save(step, tree(float(step)), good=0)
    found, expected = read(tmp_path / "aside"), read(tmp_path / "at-once")
    assert sorted(found) == sorted(expected) == ["step-00000002", "step-00000004"]
    for name, saved in expected.items():
        assert torch.equal(found[name]["student"].pop("a"), saved["student"].pop("a")) and found[name] == saved


def full(*_):
    raise OSError(28, "No space left on device")


def warnings(caplog):
    return [x.getMessage() for x in caplog.records if x.name.startswith("ardistill")]


def test_an_error_is_raised_by_the_next_one_or_at_the_end(tmp_path, monkeypatch, caplog):
    with CheckpointWriter(tmp_path / "c", keep=2, aside=True) as writer:
        writer.save(2, tree(1.0), good=0)
        writer.wait()
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "publish_folder", full)
            writer.save(4, tree(2.0), good=0)
            with pytest.raises(OSError, match="No space left"):
                writer.save(6, tree(3.0), good=0)
        writer.save(8, tree(4.0), good=0)
    assert [x.name for x in sorted((tmp_path / "c").iterdir())] == ["step-00000002", "step-00000008"]
    monkeypatch.setattr(checkpoints, "publish_folder", full)
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(tmp_path / "c", 2, aside=True) as writer:
        writer.save(10, tree(5.0), good=0)
    assert not warnings(caplog)
    with pytest.raises(KeyError), CheckpointWriter(tmp_path / "c", 2, aside=True) as writer:
        writer.save(10, tree(5.0), good=0)
        raise KeyError
    assert "No space left" in warnings(caplog)[0]
