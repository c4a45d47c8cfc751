"""A student's adapters on the base model, loaded as its card says: diffusers, or PEFT, draws what the student does."""

import functools
import re

import pytest
import torch
from tiny import PIPELINES, save

from ardistill.publishing import export
from ardistill.publishing.adapters import COMFYUI
from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import Teacher, stock_knots
from ardistill.trajectories import select_knots

pytestmark = pytest.mark.slow


def adapted(name, folder):
    """A teacher's folder, the teacher, and a student of 4 steps whose adapters change what it draws."""
    teacher = Teacher.from_pretrained(save(name, folder), device="cpu", **PIPELINES[name].size)
    solver = teacher.knots(PIPELINES[name].solver_steps)
    knots = select_knots(solver, (0, 6, 15, 21, 24)) if PIPELINES[name].given_times else stock_knots(teacher, solver, 4)
    student = Student.from_teacher(teacher, StudentConfig(knots, 0, lora_rank=2, teacher=str(folder))).eval()
    torch.manual_seed(0)
    for parameter in (p for key, p in student.named_parameters() if ".lora_B" in key):
        torch.nn.init.normal_(parameter, std=0.05)
    return teacher, student


def drawn_as_the_card_says(folder, teacher, name):
    """Images of the lines of Python on a card, run as they are written but for paths, size and noise."""
    lines = re.search(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.S)[1]
    *loading, drawing = lines.replace("this/folder", str(folder)).replace('"teacher"', f'"{teacher}"').splitlines()
    found = {}
    exec("\n".join(loading), found)
    found["pipeline"].set_progress_bar_config(disable=True)
    given = {"generator": torch.Generator().manual_seed(0), "output_type": "pt", **PIPELINES[name].call}
    found["pipeline"] = functools.partial(found["pipeline"], **given)
    exec(drawing, found)
    images = found["images"]
    return images.transpose(1, 2) if images.ndim == 5 else images  # frames after channels, as decoded


def expected_images(student, teacher, name):
    condition = teacher.encode(["a red cat"]) if teacher.takes_text else {"class_labels": torch.arange(3)}
    noise = PIPELINES[name].noise(1 if teacher.takes_text else 3, teacher.sample_shape)
    latents = sample(student, noise, condition)[:, -1]
    return (teacher.decode(latents, frames=True) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_base_model_with_the_adapters_draws_what_the_student_draws(name, tmp_path):
    teacher, student = adapted(name, tmp_path / "teacher")
    export(student, teacher, tmp_path / "mine", form="lora")
    expected = expected_images(student, teacher, name)
    images = drawn_as_the_card_says(tmp_path / "mine", tmp_path / "teacher", name).reshape(expected.shape)
    assert torch.allclose(images, expected, atol=2e-5)
    without = Student.from_teacher(teacher, StudentConfig(student.config.knots, 0)).eval()
    assert not torch.allclose(images, expected_images(without, teacher, name), atol=1e-3)
    files = {x.name for x in (tmp_path / "mine").iterdir()} - {"README.md", "samples.png", "scheduler"}
    ours = {"adapter_config.json", "adapter_model.safetensors"}
    expected = {"pytorch_lora_weights.safetensors"} if PIPELINES[name].lora_loader else ours
    assert files == expected | ({"mine-comfyui.safetensors"} if student.class_name in COMFYUI else set())
