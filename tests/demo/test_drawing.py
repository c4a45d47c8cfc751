"""What is drawn: the student's own samples, its teacher's, and the estimates between."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import open_gates, save

from ardistill.demo.drawing import denoised_estimates, draw, duration, nearest_steps, save_steps
from ardistill.evaluation import draw_samples
from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import Teacher
from ardistill.trajectories import select_knots


@pytest.fixture(scope="module", params=["dit", "sd3"])
def teacher(request, tmp_path_factory) -> Teacher:
    """One that takes classes, of a variance-preserving schedule, and one that takes prompts, of flow matching."""
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    return Teacher.from_pretrained(folder, device="cpu")


def student_of(teacher, knots=None, **options) -> Student:
    return Student.from_teacher(teacher, StudentConfig(knots or teacher.knots(4), 2, **options)).eval()


def asked(teacher) -> dict:
    return {"prompt": "a red cat"} if teacher.takes_text else {"class_label": 3}


def test_a_student_that_learnt_nothing_draws_its_teachers_solver_in_every_step(teacher):
    found = draw(student_of(teacher), teacher, seed=5, teacher_steps=4, **asked(teacher))
    assert found.student.images.shape[0] == 4 and found.student.steps == found.solver.steps == found.teacher.steps
    assert torch.allclose(found.student.images, found.solver.images, atol=1e-4)
    assert torch.equal(found.solver.images, found.teacher.images)
    assert [x.evaluations for x in found.samplers] == [4, 4, 4]
    assert (found.student.images[0] - found.student.images[-1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("target", "output"), [("state", "solver"), ("anchored", "solver"), ("state", "direct"), ("denoised", "direct")]
)
def test_the_last_estimate_is_the_students_sample(teacher, target, output):
    student = student_of(teacher, target=target, output=output)
    open_gates(student)
    noise = torch.randn(1, *teacher.sample_shape, generator=torch.Generator().manual_seed(7))
    condition = teacher.encode(["a red cat"]) if teacher.takes_text else {"class_labels": torch.tensor([3])}
    condition["guidance"] = torch.ones(1)
    estimates = sample(student, noise, condition)
    found = draw(student, teacher, seed=7, **asked(teacher))
    assert torch.allclose(found.student.images[-1:], teacher.decode(estimates[:, -1]), atol=1e-4)  # decoded in a batch
    assert torch.equal(denoised_estimates(student.config, noise, estimates)[:, -1], estimates[:, -1])


def test_it_draws_what_sample_draws(teacher, tmp_path):
    student, classes, prompts = student_of(teacher), [3], ["a red cat"]
    kind = {"prompts": prompts} if teacher.takes_text else {"class_labels": classes}
    draw_samples(student, teacher, tmp_path / "one.npz", count=1, seed=11, **kind)
    found = draw(student, teacher, seed=11, **asked(teacher))
    drawn, picture = np.load(tmp_path / "one.npz")["arr_0"][0], np.asarray(found.student.pictures[-1])
    assert np.abs(drawn.astype(int) - picture).max() <= 1  # of 255: decoded in a batch


def test_guidance_takes_two_evaluations_of_the_teacher_and_one_of_the_student(teacher):
    student = student_of(teacher, guidance_range=(1.0, 3.0))
    plain, guided = (draw(student, teacher, guidance_scale=x, **asked(teacher)) for x in (1.0, 3.0))
    assert [x.evaluations for x in plain.samplers] == [4, 4, 24]
    assert [x.evaluations for x in guided.samplers] == [4, 8, 48]
    assert not torch.equal(plain.teacher.images, guided.teacher.images)


def test_the_teachers_estimates_are_at_the_students_noise_levels(teacher):
    fine = teacher.knots(24)
    student = student_of(teacher, knots=select_knots(fine, [0, 6, 15, 21, 24]))
    assert draw(student, teacher, **asked(teacher)).teacher.steps == (6, 15, 21, 24)
    assert nearest_steps(fine, teacher.knots(1)) == [1] * 24


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "whole number from 0 as the seed"),
        ({"seed": 1.5}, "got 1.5"),
        ({"seed": None}, "got None"),
        ({"teacher_steps": 0}, "1 to 1000 steps of the teacher, got 0"),
        ({"guidance_scale": 9.0}, "distilled at guidance 1 alone, got 9"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(teacher, wrong, message):
    student = student_of(teacher, fingerprint="known")
    with pytest.raises(ValueError, match=message):
        draw(student, teacher, **asked(teacher) | wrong)


def test_a_missing_prompt_and_an_unknown_class_are_refused(teacher):
    key, values = ("prompt", (None, " ")) if teacher.takes_text else ("class_label", (99, -1, None, 1.5))
    for value in values:
        with pytest.raises(ValueError, match=r"expected a (prompt, got an empty one|class of 0 to)"):
            draw(student_of(teacher), teacher, **{key: value})


def test_a_picture_of_all_steps(teacher, tmp_path):
    save_steps(draw(student_of(teacher), teacher, **asked(teacher)), tmp_path / "steps.png")
    width, height = Image.open(tmp_path / "steps.png").size
    assert width > 4 * 100 and height > 3 * 100


@pytest.mark.parametrize(("seconds", "text"), [(0.0023, "2.3 ms"), (0.31, "310 ms"), (1.24, "1.2 s"), (48.4, "48 s")])
def test_times(seconds, text):
    assert duration(seconds) == text


def test_the_pages_python_runs(runs, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, re.S)[1].replace("runs/fashion/ard", str(runs / "four"))
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "student 4 evaluations, " in capsys.readouterr().out and Image.open("ankle_boot.png").size == (28, 28)
