"""The fingerprint of weights is computed once, and never taken for that of others."""

import os

import pytest
import torch
from diffusers import DiTTransformer2DModel

from ardistill.core.config import StudentConfig
from ardistill.files import fingerprints, remembered_fingerprint, sealed_json, weight_fingerprint
from ardistill.files.fingerprints import quick_checksum
from ardistill.student import Student
from ardistill.teacher import Teacher, check_same_teacher


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache, in a home of its own, with every set of weights large enough for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(fingerprints, "LARGE", 0)
    forget(monkeypatch)
    return tmp_path / "caches" / "ardistill" / "fingerprints"


def forget(monkeypatch):
    """As a new process begins."""
    monkeypatch.setattr(fingerprints, "_known", {})


def test_a_second_process_reads_what_the_first_one_computed(teacher, cache, monkeypatch):
    expected = weight_fingerprint(teacher.transformer.state_dict())
    assert teacher.fingerprint() == expected
    (entry,) = cache.iterdir()
    forget(monkeypatch)
    entry.write_bytes(sealed_json({"fingerprint": "read"}))
    assert teacher.fingerprint() == "read"
    entry.unlink()
    assert teacher.fingerprint() == "read"  # from memory


def _edit(name):
    """Changes of weights in memory that leave no trace but the weights themselves."""

    def change(weight):
        if name == "no_grad":
            with torch.no_grad():
                weight.add_(1e-3)
        elif name == "data":  # as PEFT merges adapters
            weight.data += 1e-3
        elif name == "numpy":
            weight.detach().numpy()[0, 0] += 1e-3
        elif name == "one bit":
            weight.data.view(torch.int32)[0, 0] ^= 1
        elif name == "rows":
            weight.data = weight.data.flip(0)
        elif name == "columns":
            weight.data = weight.data.flip(1).contiguous()
        elif name == "constant":
            weight.data.fill_(0.5)

    return change


@pytest.mark.parametrize("name", ["no_grad", "data", "numpy", "one bit", "rows", "columns", "constant"])
def test_weights_that_were_changed_in_memory_are_hashed_anew(teacher, cache, name):
    before = teacher.fingerprint()
    _edit(name)(teacher.transformer.transformer_blocks[1].attn1.to_q.weight)
    found = teacher.fingerprint()
    assert found != before and found == weight_fingerprint(teacher.transformer.state_dict())


def test_weights_of_any_dtype_and_layout_have_a_checksum_of_their_own(cache):
    base = torch.arange(45.0)
    several = [
        {"a": base},
        {"b": base},
        {"a": base.view(5, 9)},
        {"a": base.view(5, 9).t()},
        {"a": base.half()},
        {"a": base.bool()},
        {"a": base[1:]},
        {"a": base[2:]},
        {"a": base.view(torch.int32)},
        {"a": torch.tensor(1.0)},
        {"a": torch.empty(0)},
        {"a": torch.empty(0, 3)},
        {"a": base, "b": base},
    ]
    assert len({quick_checksum(x) for x in several}) == len(several)
    assert quick_checksum({"a": base[1:]}) == quick_checksum({"a": base[1:].clone()})
    for weights in several:
        assert remembered_fingerprint(weights) == weight_fingerprint(weights)


def test_a_file_that_changed_and_looks_the_same_is_noticed(teacher, cache, tmp_path, monkeypatch):
    transformer, folder = teacher.transformer, tmp_path / "teacher"
    transformer.save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    before, stamp = Teacher(_loaded(folder), teacher.scheduler).fingerprint(), path.stat()
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)  # the same inode and size
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    forget(monkeypatch)
    after = Teacher(_loaded(folder), teacher.scheduler)
    assert after.fingerprint() == weight_fingerprint(after.transformer.state_dict()) != before


def _loaded(folder):
    return DiTTransformer2DModel.from_pretrained(folder)


@pytest.mark.parametrize("case", ["file in its place", "relative", "no home", "cut", "not sealed", "a list", "folder"])
def test_a_cache_that_cannot_be_used_costs_time_alone(teacher, cache, tmp_path, monkeypatch, case):
    expected = weight_fingerprint(teacher.transformer.state_dict())
    if case == "file in its place":
        cache.parent.parent.touch()
    elif case == "relative":
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    elif case == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/proc/nobody")
    else:
        teacher.fingerprint()
        (entry,) = cache.iterdir()
        if case == "folder":
            entry.unlink()
            entry.mkdir()
        else:
            whole = entry.read_bytes()
            entry.write_bytes({"cut": whole[:20], "not sealed": b'{"fingerprint": "wrong"}', "a list": b"[]"}[case])
    forget(monkeypatch)
    assert teacher.fingerprint() == expected and teacher.fingerprint() == expected


def test_small_weights_leave_no_file(teacher, cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    assert teacher.fingerprint() == weight_fingerprint(teacher.transformer.state_dict())
    assert not cache.exists()


def test_the_weights_are_not_read_where_the_expected_teacher_is_unknown(teacher, tmp_path):
    class Unread(Teacher):
        def fingerprint(self):
            raise AssertionError("its weights were read")

    unread = Unread(teacher.transformer, teacher.scheduler)
    check_same_teacher("the student", StudentConfig(teacher.knots(2), 1), unread, "")
    config = StudentConfig(teacher.knots(2), 0, lora_rank=1)
    Student.from_teacher(teacher, config).save_adapters(tmp_path / "adapters")
    Student.from_adapters(unread, tmp_path / "adapters")
    known = StudentConfig(teacher.knots(2), 1, fingerprint="0" * 64)
    with pytest.raises(AssertionError, match="its weights were read"):
        check_same_teacher("the student", known, unread, "")
