"""Tensors read and written one at a time are those that safetensors itself reads and writes."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from ardistill.files import TensorFiles, weight_fingerprint, write_in_turn
from ardistill.files.weights import file_fingerprint


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


def test_every_type_of_values_is_read_as_safetensors_reads_it(tmp_path):
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    types += [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in types}
    save_file(tensors, tmp_path / "x.safetensors")
    files = TensorFiles([tmp_path / "x.safetensors"])
    for name, expected in load_file(tmp_path / "x.safetensors").items():
        found = files[name]
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    assert weight_fingerprint(files) == weight_fingerprint(tensors)


def test_a_fingerprint_in_pieces_is_that_of_whole_tensors(tmp_path, monkeypatch):
    tensors = some(torch.bfloat16)
    save_file(tensors, tmp_path / "x.safetensors")
    files = TensorFiles([tmp_path / "x.safetensors"])
    for piece in (1, 4, 1 << 20):
        monkeypatch.setattr("ardistill.files.weights._PIECE", piece)
        assert file_fingerprint(files) == weight_fingerprint(tensors)
    assert [len(x) for x in files.pieces("b", 4)] == [4, 4, 4, 3]


def test_a_file_that_is_changed_cut_or_lost_after_it_was_opened_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    files = TensorFiles([path])
    save_file({"b": torch.zeros(2000)}, path)
    with pytest.raises(ValueError, match=r"x.safetensors is missing, cut or damaged \(it has changed since"):
        files["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"x.safetensors is missing, cut or damaged"):
        TensorFiles([path])
    path.unlink()
    with pytest.raises(ValueError, match=r"x.safetensors is missing, cut or damaged .*No such file"):
        files["a"]


def test_a_type_that_torch_lacks_is_refused(tmp_path):
    header = b'{"a":{"dtype":"F4","shape":[2,2],"data_offsets":[0,2]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with pytest.raises(ValueError, match=r"a in .*x.safetensors has the type F4, which torch lacks"):
        TensorFiles([tmp_path / "x.safetensors"])


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_part_of_a_process_is_filled(tmp_path, dim, rank):
    whole = torch.randn(5, 4, 3)
    save_file({"a": torch.randn(7), "b": whole}, tmp_path / "x.safetensors")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=3)
    try:
        mesh = init_device_mesh("cpu", (3,))
        expected = [*whole.chunk(3, dim), whole.narrow(dim, 0, 0)][rank]
        part = DTensor.from_local(
            torch.empty_like(expected, dtype=torch.bfloat16),
            mesh,
            [Shard(dim)],
            shape=whole.shape,
            stride=whole.stride(),
        )
        TensorFiles([tmp_path / "x.safetensors"]).fill("b", part)
        assert torch.equal(part.to_local(), expected.bfloat16())
    finally:
        torch.distributed.destroy_process_group()
