"""What the page answers, without a browser: what fits a student, errors as one line, two visitors at once."""

import shutil
import threading

import gradio as gr
import pytest
import torch
from tiny import save

from ardistill.demo.answers import Answers, at_step, enlarged, fitting, named, one_line, step_slider
from ardistill.demo.page import make_page
from ardistill.demo.studio import Studio
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher


@pytest.fixture(scope="module")
def studio(runs) -> Studio:
    return Studio([str(runs / "four"), str(runs / "two")], device="cpu")


@pytest.fixture(scope="module")
def text_student(tmp_path_factory) -> str:
    """A student of a tiny text-to-image teacher, with guidance as its input."""
    folder = tmp_path_factory.mktemp("text")
    teacher = Teacher.from_pretrained(save("sd3", folder / "teacher"), device="cpu")
    config = StudentConfig(teacher.knots(1), 0, teacher=teacher.name, guidance_range=(1.0, 4.0))
    Student.from_teacher(teacher, config).save_pretrained(folder / "student")
    return str(folder / "student")


def drawn(studio, seed):
    return studio.draw(studio.names[0], class_label=3, seed=seed, teacher_steps=4).student.images


def test_the_controls_fit_the_student(studio, text_student):
    about, label, prompt, guidance = fitting(studio.load(studio.names[0]))
    assert about["value"] == "4 steps, history in 2 layers; teacher `zoo/fashion`, guidance 1.25."
    assert label["choices"][9] == ("9: ankle boot", 9) and label["visible"]
    assert not prompt["visible"] and not guidance["visible"]
    about, label, prompt, guidance = fitting(Studio([text_student], device="cpu").load(text_student))
    assert about["value"].startswith("1 step, no history") and about["value"].endswith("guidance 1 to 4.")
    assert not label["visible"] and prompt["visible"]
    assert guidance == {"minimum": 1.0, "maximum": 4.0, "value": 2.5, "visible": True}
    assert not step_slider(1)["visible"]


def test_students_have_short_names_where_these_are_their_own(runs):
    four, two = str(runs / "four"), str(runs / "two")
    checkpoint = f"{four}/checkpoints/step-00000002"
    shown = [x for x, _ in named([four, two, checkpoint, f"{two}/student", "someone/student"])]
    assert shown == ["four", two, "four-step-00000002", f"{two}/student", "someone/student"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "nobody/nothing"}, "expected one of the students"),
        ({"label": 10}, "expected a class of 0 to 9, got 10"),
        ({"label": None}, "expected a class of 0 to 9, got None"),
        ({"seed": None}, "expected a whole number from 0 as the seed"),
        ({"seed": -1.0}, "got -1"),
        ({"steps": 0}, "expected 1 to 1000 steps of the teacher, got 0"),
    ],
)
def test_errors_are_one_line_on_the_page(studio, capsys, changes, message):
    request = {"name": studio.names[0], "label": 0, "prompt": "", "scale": 1.0, "seed": 0, "steps": 4, "shown": None}
    with pytest.raises(gr.Error) as raised:
        one_line(Answers(studio).draw)(*(request | changes).values())
    assert message in raised.value.message and "\n" not in raised.value.message
    assert not raised.value.print_exception and capsys.readouterr().err == ""


def test_an_empty_prompt_is_one_line_and_html_is_shown_as_text(text_student):
    studio = Studio([text_student], others=True, device="cpu")
    answers = Answers(studio)
    with pytest.raises(gr.Error, match="expected a prompt, got an empty one"):
        one_line(answers.draw)(text_student, None, " ", 2.0, 0, 4, None)
    assert len(answers.draw(text_student, None, "a red cat", 2.0, 0, 4, None)) == 10
    with pytest.raises(gr.Error, match="&lt;b&gt;"):
        one_line(answers.add)("nobody/<b>", [text_student], None)
    with pytest.raises(gr.Error, match="got an empty name"):
        one_line(answers.add)(" ", [text_student], None)


def test_a_bug_is_one_line_on_the_page_and_a_traceback_in_the_log(capsys):
    def broken():
        raise AssertionError("impossible")

    with pytest.raises(gr.Error, match="a bug in ardistill"):
        one_line(broken)()
    assert "Traceback" in capsys.readouterr().err


def test_files_of_a_drawing_go_with_it(studio):
    answers = Answers(studio)
    request = (studio.names[0], 0, "", None, 0.0, 4)
    first = answers.draw(*request, None)
    second = answers.draw(*request, first[0])
    assert not first[0].folder.exists() and (second[0].folder / "student.png").is_file()
    assert answers.choose(studio.names[1], second[0])[4] is None and not second[0].folder.exists()
    pictures = at_step(second[0], 2)
    assert pictures[0] == enlarged(second[0].drawing.student.pictures[1]) and "step 2 of 4" in pictures[3]
    assert at_step(None, 2) == [None, None, None, "", "", ""]


def test_visitors_at_once_get_each_their_own(studio):
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: drawn(studio, i)})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], drawn(studio, i)) for i in range(2))
    assert not torch.equal(found[0], found[1])


def test_students_are_checked_before_a_page_is_made(runs, tmp_path):
    with pytest.raises(ValueError, match="expected one student or more, got none"):
        Studio([])
    with pytest.raises(ValueError, match=r"expected a student \(a run, a checkpoint of one, or an export\)"):
        Studio([str(runs / "four"), str(tmp_path)])
    with pytest.raises(ValueError, match="found none; name a run"):
        Studio([str(tmp_path / "missing")])


def test_a_student_on_the_hub_is_found_by_its_id(runs, tmp_path, monkeypatch):
    """In the Hub's cache, as a download leaves it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshots = tmp_path / "models--someone--student" / "snapshots" / ("a" * 40)
    shutil.copytree(runs / "two" / "student", snapshots)
    (tmp_path / "models--someone--student" / "refs").mkdir()
    (tmp_path / "models--someone--student" / "refs" / "main").write_text("a" * 40)
    found = Studio(["someone/student"], device="cpu").draw("someone/student", teacher_steps=2)
    assert found.student.num_steps == 2
    with pytest.raises(ValueError, match="could not load nobody/nothing from the Hub"):
        Studio(["nobody/nothing"])


def test_the_page_has_no_public_interface_for_programs(studio):
    page = make_page(studio)
    assert not page.get_api_info()["named_endpoints"]
    assert not page.analytics_enabled
