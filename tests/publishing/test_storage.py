"""What an export's weights are stored in: bfloat16, and several files, which load as one file in float32 does."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny import open_gates

from ardistill.files import load_tensors
from ardistill.publishing import export, is_export_of, load
from ardistill.student import Student, StudentConfig, sample

FILE = "diffusion_pytorch_model"


@pytest.fixture
def student(teacher):
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 2, output="direct", target="anchored"))
    open_gates(student)
    return student.eval()


def drawn(folder, dtype, prepare=lambda pipeline: pipeline, loader=DiffusionPipeline.from_pretrained):
    options = {"trust_remote_code": True} if loader is not load else {}
    pipeline = prepare(loader(folder, torch_dtype=dtype, **options))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline([1, 3], generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_an_export_in_bfloat16_and_several_files_is_the_one_in_float32_rounded(teacher, student, tmp_path):
    plain, small = tmp_path / "plain", tmp_path / "small"
    export(student, teacher, plain, picture=_picture(tmp_path))
    export(student, teacher, small, picture=_picture(tmp_path), dtype="bfloat16", max_shard_size="20KB")
    files = sorted((small / "transformer").glob("*.safetensors"))
    index = json.loads((small / "transformer" / f"{FILE}.safetensors.index.json").read_text())["weight_map"]
    stored = {name: x for file in files for name, x in load_tensors(file).items()}
    exact = load_tensors(plain / "transformer" / f"{FILE}.safetensors")
    assert len(files) > 2 and {*index.values()} == {x.name for x in files} and index.keys() == stored.keys()
    assert stored.keys() == exact.keys() and all(torch.equal(x.bfloat16(), stored[k]) for k, x in exact.items())
    expected = drawn(plain, torch.bfloat16)
    for loader in (DiffusionPipeline.from_pretrained, load):
        assert torch.equal(drawn(small, torch.bfloat16, loader=loader), expected)
    later = [drawn(x, torch.float32, lambda pipeline: pipeline.to(torch.bfloat16)) for x in (small, plain)]
    assert torch.equal(*later)  # the positions, which no file holds, are rounded too
    read = Student.from_pretrained(small, "cpu").transformer.state_dict()
    assert all(torch.equal(x, exact[name].bfloat16().float()) for name, x in read.items())
    kept = Student.from_pretrained(small, "cpu", keep_dtype=True)
    assert all(torch.equal(x, stored[name]) for name, x in kept.transformer.state_dict().items())
    noise, labels = torch.zeros(1, *teacher.sample_shape), {"class_labels": torch.tensor([1])}
    exactly, rounded = (sample(x, noise, labels)[:, -1] for x in (student, kept))
    assert torch.allclose(rounded.float(), exactly, atol=0.02 * float(exactly.abs().max()))
    assert is_export_of(small, student) and is_export_of(small, student, dtype="bfloat16")
    assert not is_export_of(small, student, dtype="float32") and not is_export_of(plain, student, dtype="bfloat16")


def _picture(folder) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    return folder / "picture.png"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "expected a dtype of float32, bfloat16, got 'float16'"),
        ({"max_shard_size": "5 pounds"}, "expected a max_shard_size such as 5GB or 500MB, got '5 pounds'"),
        ({"form": "lora", "dtype": "bfloat16"}, "expected dtype float32 for form lora, got bfloat16"),
        ({"form": "single_file", "max_shard_size": "5GB"}, "expected max_shard_size with form pipeline"),
    ],
)
def test_storage_that_cannot_be_is_refused_before_anything_is_written(teacher, student, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(student, teacher, tmp_path / "export", **options)
    assert not (tmp_path / "export").exists()
