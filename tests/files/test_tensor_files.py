"""Tensors read and written one at a time are those that safetensors itself reads and writes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ardistill.files import TensorFiles, weight_fingerprint, write_in_turn


def some(dtype=torch.float32):
    return {
        name: torch.randn(shape).to(dtype) for name, shape in {"b": (3, 5), "a": (7,), "c.ä": (), "d": (0, 2)}.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_written_in_turn_has_the_bytes_of_safetensors(tmp_path, dtype):
    tensors = dict(sorted(some(dtype).items()))
    save_file(tensors, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    like = {name: x.to("meta") for name, x in tensors.items()}
    write_in_turn(like, iter(tensors.items()), tmp_path / "found.safetensors")
    assert (tmp_path / "found.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def test_wide_types_before_narrow_ones_are_read_again(tmp_path):
    tensors = {"z": torch.randn(3), "a": torch.randn(5).bfloat16()}
    write_in_turn(tensors, tensors.items(), tmp_path / "x.safetensors")
    assert all(torch.equal(x, tensors[name]) for name, x in load_file(tmp_path / "x.safetensors").items())


def test_a_failure_in_the_middle_leaves_the_earlier_file(tmp_path):
    path, tensors = tmp_path / "x.safetensors", some()
    save_file(tensors, path)
    before = path.read_bytes()

    def fails():
        yield next(iter(tensors.items()))
        raise RuntimeError("gathering failed")

    with pytest.raises(RuntimeError, match="gathering failed"):
        write_in_turn(tensors, fails(), path)
    assert path.read_bytes() == before and [x.name for x in tmp_path.iterdir()] == [path.name]


def test_the_fingerprint_of_files_is_that_of_their_tensors(tmp_path):
    tensors, more = some(), {"e": torch.randn(2, 2)}
    save_file(tensors, tmp_path / "1.safetensors")
    save_file(more, tmp_path / "2.safetensors")
    files = TensorFiles(sorted(tmp_path.iterdir()))
    assert weight_fingerprint(files) == weight_fingerprint(tensors | more)
    target = torch.empty(2, 2, dtype=torch.bfloat16)
    files.fill("e", target)
    assert torch.equal(target, more["e"].bfloat16()) and len(files) == 5


def test_files_that_cannot_be_read_are_named(tmp_path):
    save_file(some(), tmp_path / "1.safetensors")
    save_file(some(), tmp_path / "2.safetensors")
    with pytest.raises(ValueError, match=r"2.safetensors and .*1.safetensors both hold"):
        TensorFiles([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    (tmp_path / "3.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"3.safetensors is missing, cut or damaged .*write or download it again"):
        TensorFiles([tmp_path / "3.safetensors"])
