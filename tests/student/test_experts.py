"""A student of two transformers, one for each expert of a teacher of two, as Wan 2.2 is published."""

import json
import os
import subprocess
import sys

import diffusers
import pytest
import torch
from tiny import PIPELINES, TINY, open_gates

import ardistill
from ardistill.cli import main
from ardistill.core.experts import PairConfig
from ardistill.publishing import export, is_export_of
from ardistill.student import Student, StudentConfig, StudentPair, sample
from ardistill.teacher import Teacher, expert_knots

pytestmark = pytest.mark.slow
PROMPTS = ["a red cat", "the moon"]
SIZE = {"height": 16, "width": 16, "num_frames": 1}
DRAW = """
import sys, torch
sys.modules["ardistill"] = None
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
options = {"prompt": ["a red cat"], "height": 16, "width": 16, "num_frames": 1, "output_type": "pt"}
options |= {name: float(value) for name, _, value in (x.partition("=") for x in sys.argv[3:])}
torch.save(pipeline(**options, generator=torch.Generator().manual_seed(0)).frames, sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a boundary that the first two of four steps are above of, and of eight the first four."""
    folder = tmp_path_factory.mktemp("teacher")
    one = PIPELINES["wan"].make()
    second = TINY["wan"].transformer()
    for parameter in second.parameters():
        parameter.data = parameter.data.flip(0)
    parts = dict(one.components) | {"transformer_2": second, "boundary_ratio": 0.8}
    diffusers.WanPipeline(**parts).save_pretrained(folder)
    return folder


@pytest.fixture
def teacher(folder):
    return Teacher.from_pretrained(folder, guidance_scale=1.0, **SIZE)


def pair(teacher, steps=4, layers=2, **options):
    """A student of each expert, and both together."""
    knots = teacher.knots(steps)
    return StudentPair(
        *(
            Student.from_teacher(teacher, StudentConfig(expert_knots(teacher, knots, name), layers, expert=name, **options))
            for name in ("high_noise", "low_noise")
        )
    ).eval()


def trained(student, seed=0):
    """Gates opened and weights changed, as training would."""
    open_gates(student)
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return student


def noise_and_condition(teacher, count=1):
    noise = torch.randn(count, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    return noise, teacher.encode(PROMPTS[:count])


def images(teacher, student):
    noise, condition = noise_and_condition(teacher)
    return teacher.decode(sample(student, noise, condition)[:, -1]) / 2 + 0.5


def drawn_by_diffusers(folder, tmp_path, *words):
    """Drawn from the export in a process without this package."""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", DRAW, str(folder), str(tmp_path / "images.pt"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(tmp_path / "images.pt")[:, 0]


@pytest.mark.parametrize("layers", [0, 2])
def test_an_untrained_pair_draws_what_the_solver_draws_through_both(teacher, layers):
    student, knots = pair(teacher, layers=layers), teacher.knots(4)
    assert student.config.knots == knots and [x.num_steps for x in student.parts.values()] == [2, 2]
    noise, condition = noise_and_condition(teacher, 2)
    solved = teacher.solve_ode(noise, condition, knots).states[:, 1:]
    assert torch.allclose(sample(student, noise, condition), solved, atol=1e-5)


def test_the_parts_start_from_their_own_experts(teacher):
    student = pair(teacher)
    for part, expert in zip(student.parts.values(), (teacher.transformer, teacher.second[0]), strict=True):
        own = dict(part.transformer.named_parameters())
        assert all(torch.equal(x, own[name]) for name, x in expert.named_parameters())


def test_a_pair_draws_as_one_student_after_the_other_and_no_history_crosses(teacher):
    student = trained(pair(teacher))
    noise, condition = noise_and_condition(teacher, 2)
    drawn = sample(student, noise, condition)
    middle = sample(student.first, noise, condition)
    end = sample(student.second, middle[:, -1], condition)
    assert torch.equal(drawn, torch.cat([middle, end], dim=1))
    inputs = torch.cat([noise[:, None], drawn[:, :-1]], dim=1)
    assert torch.allclose(student(inputs, condition), drawn, atol=1e-5)
    changed = torch.cat([torch.randn_like(inputs[:, :2]), inputs[:, 2:]], dim=1)
    assert torch.equal(student(changed, condition)[:, 2:], student(inputs, condition)[:, 2:])
    with pytest.raises(ValueError, match="trained one by one"):
        student(inputs, condition, sequential=True)


@pytest.mark.parametrize("options", [{"mask": "M4"}, {"output": "direct"}, {"guidance_range": (1.0, 3.0)}])
def test_an_export_of_two_draws_the_same_with_diffusers_alone(teacher, folder, tmp_path, options):
    student = trained(pair(teacher, **options))
    export(student, teacher, tmp_path / "export")
    index = json.loads((tmp_path / "export" / "model_index.json").read_text())
    assert index["transformer_2"] == ["diffusers", "WanTransformer3DModel"] and index["boundary_ratio"] == 0.8
    expected = images(teacher, student)
    assert torch.allclose(drawn_by_diffusers(tmp_path / "export", tmp_path), expected, atol=1e-4)
    read = Student.from_pretrained(tmp_path / "export", "cpu")
    assert isinstance(read, StudentPair) and read.config == student.config
    assert torch.equal(images(teacher, read), expected)
    loaded = ardistill.load(tmp_path / "export")
    given = SIZE | {"prompt": PROMPTS[:1], "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    assert torch.allclose(loaded(**given).frames[:, 0], expected, atol=1e-4)
    assert is_export_of(tmp_path / "export", student)
    student.second.transformer.proj_out.bias.data += 1
    assert not is_export_of(tmp_path / "export", student)
