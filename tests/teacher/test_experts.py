"""A teacher of two transformers, for high and for low noise, as Wan 2.2 is published."""

import json
import os

import diffusers
import pytest
import torch
from stranger import alone
from tiny import TINY, open_gates
from two_experts import DRAW, PROMPTS, SIZE, save_two

from ardistill.cli import main
from ardistill.publishing import export
from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import Teacher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_two(tmp_path_factory.mktemp("teacher"))


def test_the_solver_draws_what_the_pipeline_of_two_draws(folder):
    pipeline = diffusers.WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    teacher = Teacher.from_pretrained(folder, guidance_scale=2.0, **SIZE)
    teacher.scheduler = pipeline.scheduler
    knots = teacher.knots(4)
    assert [t >= 800 for t in knots.timesteps] == [True, True, False, False]
    given = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt", "prompt": PROMPTS, **SIZE}
    images = pipeline(**given, generator=torch.Generator().manual_seed(0)).frames[:, 0]
    noise = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    solved = teacher.solve_ode(noise, teacher.encode(PROMPTS), knots)
    assert torch.allclose(images, teacher.decode(solved.states[:, -1]) / 2 + 0.5, atol=1e-4)
    teacher.companions["transformer_2"].proj_out.weight.data.zero_()
    other = teacher.solve_ode(noise, teacher.encode(PROMPTS), knots)
    assert torch.equal(other.states[:, :3], solved.states[:, :3])
    assert not torch.allclose(other.states[:, 3], solved.states[:, 3], atol=1e-3)


def test_both_have_a_part_in_the_fingerprint(folder, tmp_path):
    one = Teacher.from_pretrained(folder).fingerprint()
    assert Teacher.from_pretrained(folder, weights="bfloat16").fingerprint() == one
    for part in os.listdir(folder):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "transformer_2").unlink()
    TINY["wan"].transformer().save_pretrained(tmp_path / "transformer_2")
    assert Teacher.from_pretrained(tmp_path).fingerprint() != one


@pytest.mark.parametrize("rank", [0, 2])
def test_a_student_starts_from_the_one_that_predicts_at_more_of_its_steps(folder, rank):
    teacher = Teacher.from_pretrained(folder, **SIZE)
    knots = teacher.knots(4)
    for boundary, part in ((0.8, teacher.transformer), (0.95, teacher.companions["transformer_2"])):
        teacher.companions.index["boundary_ratio"] = boundary  # two or three of four times are below it
        student = Student.from_teacher(teacher, StudentConfig(knots, 0, lora_rank=rank))
        own = {name.replace(".base_layer", ""): x for name, x in student.transformer.named_parameters()}
        assert all(torch.equal(x, own[name]) for name, x in part.named_parameters())


def test_from_record_to_an_export_of_one_transformer(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = ["record", "--teacher", folder, "--out", tmp_path / "data", "--num_trajectories", 4, "--num_steps", "[2]",
             "--solver_steps", 4, "--guidance_scale", 2.0, "--prompts", tmp_path / "prompts.txt", "--height", 16,
             "--width", 16]  # fmt: skip
    main([str(x) for x in words])
    words = ["distill", "--trajectories", tmp_path / "data", "--out", tmp_path / "run", "--num_steps", 2,
             "--history_layers", 2, "--training.max_steps", 2, "--training.batch_size", 2]  # fmt: skip
    main([str(x) for x in words])
    student = Student.from_pretrained(tmp_path / "run")
    open_gates(student)
    teacher = Teacher.from_pretrained(folder, **SIZE)
    export(student, teacher, tmp_path / "export")
    index = json.loads((tmp_path / "export" / "model_index.json").read_text())
    assert index.get("transformer_2", [None, None]) == [None, None] and index.get("boundary_ratio") is None
    alone(DRAW, tmp_path / "export", tmp_path / "images.pt", folder=tmp_path)
    noise = torch.randn(1, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    expected = teacher.decode(sample(student, noise, teacher.encode(PROMPTS[:1]))[:, -1]) / 2 + 0.5
    assert torch.allclose(torch.load(tmp_path / "images.pt")[:, 0], expected, atol=1e-4)


def test_what_a_teacher_of_two_lacks_is_told(folder, tmp_path):
    with pytest.raises(ValueError, match="two transformers: expected weights float32 or bfloat16, got int8"):
        Teacher.from_pretrained(folder, weights="int8")
    for part in os.listdir(folder):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "model_index.json").unlink()
    index = json.loads((folder / "model_index.json").read_text()) | {"boundary_ratio": None}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="needs a boundary_ratio between 0 and 1"):
        Teacher.from_pretrained(tmp_path)
