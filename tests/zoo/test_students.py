"""The embedded students: each is of its embedded teacher, nearer to it than the teacher's solver in as many steps."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ardistill.cli import main
from ardistill.student import Student, sample
from ardistill.teacher import load_recorded_teacher
from ardistill.zoo import FOLDERS, STUDENTS


def test_there_is_one_to_draw_with():
    assert "zoo/fashion-student" in STUDENTS


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_of_its_embedded_teacher(name):
    student = Student.from_pretrained(name, "cpu")
    teacher = load_recorded_teacher(student.config, device="cpu")
    assert f"{teacher.name}-student" == name and student.config.fingerprint == teacher.fingerprint()
    stored = [x for path in STUDENTS[name].rglob("*.safetensors") for x in load_file(path).values()]
    assert stored and {x.dtype for x in stored} == {torch.float16}
    assert next(student.transformer.parameters()).dtype == torch.float32
    assert not any("_name_or_path" in path.read_text() for path in STUDENTS[name].rglob("*.json"))
    card = (STUDENTS[name] / "README.md").read_text()
    assert "FD" in card and "library_name: diffusers" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_nearer_to_its_teacher_than_the_solver(name):
    student = Student.from_pretrained(name, "cpu")
    teacher = load_recorded_teacher(student.config, device="cpu")
    untrained = Student.from_teacher(teacher, student.config).eval()
    noise = torch.randn(20, *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
    if teacher.takes_text:
        condition = teacher.encode(["a red cat left of a blue house"] * 20)
    else:
        condition = {"class_labels": torch.arange(20) % teacher.num_classes}
    target = teacher.solve_ode(noise, condition, teacher.knots(24)).states[:, -1]
    distances = [(sample(x, noise, condition)[:, -1] - target).square().mean() for x in (student, untrained)]
    assert distances[0] < distances[1]


def test_the_command_draws_with_one_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["sample", "--student", "zoo/fashion-student", "--count", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["count"] == 2 and (tmp_path / "samples.png").stat().st_size > 0


def test_another_name_says_which_there_are():
    with pytest.raises(ValueError, match=r"expected a student of the zoo, .*zoo/fashion-student"):
        Student.from_pretrained("zoo/nothing-student")
    assert {name.removeprefix("zoo/").removesuffix("-student") for name in STUDENTS} <= set(FOLDERS)
