"""A transformer of one's own: the example of the documentation, and its export in a process without this package."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from stranger import alone

from ardistill import Student, StudentConfig, load
from ardistill.core.architecture import ARCHITECTURES
from ardistill.families import FAMILIES, Family, register_family
from ardistill.publishing import export
from ardistill.student import sample
from ardistill.teacher import Teacher

FOLDER = Path(__file__).parents[2] / "examples" / "own_class"
DRAW = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
images = pipeline([0, 1], generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(images, sys.argv[2])
"""


@pytest.fixture(autouse=True)
def forgotten():
    """Classes that a test registers are not known to the next one."""
    known = [dict(x) for x in (FAMILIES, ARCHITECTURES)]
    yield
    for found, before in zip((FAMILIES, ARCHITECTURES), known, strict=True):
        for name in {*found} - {*before}:
            del found[name]


@pytest.mark.slow
def test_the_example_runs_and_its_export_carries_the_class(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import distil

    distil.main(tmp_path)
    files = {x.suffix for x in (tmp_path / "student" / "transformer").iterdir()}
    assert files == {".json", ".safetensors", ".py"} and (tmp_path / "samples.png").is_file()
    card = (tmp_path / "student" / "README.md").read_text()
    assert "diffusers has no class NormedDiT" in card and "`transformer/transformer_" in card
    alone(DRAW, tmp_path / "student", tmp_path / "images.pt", folder=tmp_path)
    student = Student.from_pretrained(tmp_path / "run")
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = (sample(student, noise, {"class_labels": torch.tensor([0, 1])})[:, -1] / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(torch.load(tmp_path / "images.pt"), expected, atol=1e-5)
    ours = load(tmp_path / "student")
    ours.set_progress_bar_config(disable=True)
    images = ours([0, 1], generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert torch.allclose(images, expected, atol=1e-5)


def test_a_class_whose_file_needs_others_is_not_exported(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text("")
    text = (FOLDER / "normed_dit.py").read_text().replace("NormedDiT", "TiedDiT")
    (tmp_path / "tied_dit.py").write_text(text.replace("import torch\n", "import parts\nimport torch\n", 1))
    monkeypatch.syspath_prepend(tmp_path)
    import tied_dit

    row = Family(block_lists=("blocks",), attention=("attention",), head=("proj_out",), pipeline="DiTPipeline")
    register_family(tied_dit.TiedDiT, row)
    teacher = Teacher(tied_dit.TiedDiT(), DDIMScheduler())
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 0))
    with pytest.raises(ValueError, match=r"its file tied_dit\.py imports parts, which does not go with it"):
        export(student, teacher, tmp_path / "student")
    assert not (tmp_path / "student").exists()
