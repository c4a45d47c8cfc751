"""The page as a Space, and the command: what is written, what is served, how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import gradio
import pytest
import yaml
from tiny import save

from ardistill.cli import main
from ardistill.demo import write_space
from ardistill.demo.demo import start
from ardistill.demo.studio import Studio
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher


@pytest.mark.slow
def test_a_space_serves_its_students_alone_and_ends_in_peace(runs, tmp_path, capsys):
    students = [f"{runs}/four", f"{runs}/two/checkpoints/step-00000002"]
    main(["demo", "--student", json.dumps(students), "--space", f"{tmp_path}/space", "--json"])
    assert json.loads(capsys.readouterr().out) == {"space": f"{tmp_path}/space", "students": students}
    app = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path / "space", stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    said = next(line for line in app.stderr if "page is at" in line)
    address = re.search(r"http://\S+", said)[0]
    with urllib.request.urlopen(f"{address}config") as answer:
        parts = {x["props"].get("elem_id"): x["props"] for x in json.load(answer)["components"]}
    names = [name for _, name in parts["students"]["choices"]]
    assert names == ["students/four", "students/two-step-00000002"]
    assert not parts["other"]["visible"]
    app.send_signal(signal.SIGINT)
    assert app.wait(30) == 0 and "Traceback" not in app.stderr.read()


def test_what_a_space_holds(runs, tmp_path):
    write_space(tmp_path / "space", [str(runs / "four")], teacher=None)
    found = {str(x.relative_to(tmp_path / "space")) for x in (tmp_path / "space").rglob("*") if x.is_file()}
    student = {f"students/four/{x}" for x in ("student.json", "transformer/config.json")}
    weights = "students/four/transformer/diffusion_pytorch_model.safetensors"
    assert found == {"app.py", "requirements.txt", "README.md", ".gitattributes", weights, *student}
    assert len((tmp_path / "space" / "app.py").read_text().splitlines()) < 10
    assert (tmp_path / "space" / "requirements.txt").read_text().startswith("ardistill[demo]==")
    _, facts, text = (tmp_path / "space" / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(facts)
    assert facts["sdk"] == "gradio" and facts["sdk_version"] == gradio.__version__ and facts["app_file"] == "app.py"
    assert "`students/four` (4)" in text and "models" not in facts
    copied = Student.from_pretrained(tmp_path / "space" / "students" / "four", "cpu")
    assert copied.config == Student.from_pretrained(runs / "four", "cpu").config
    with pytest.raises(ValueError, match="to be empty"):
        write_space(tmp_path / "space", [str(runs / "four")])


def test_a_space_needs_a_teacher_that_it_finds(tmp_path):
    teacher = Teacher.from_pretrained(save("sd3", tmp_path / "teacher"), device="cpu")
    config = StudentConfig(teacher.knots(1), 0, teacher=teacher.name)
    Student.from_teacher(teacher, config).save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="publish it and name its Hub id with --teacher"):
        write_space(tmp_path / "space", [str(tmp_path / "student")])
    assert not (tmp_path / "space").exists()
    write_space(tmp_path / "space", [str(tmp_path / "student")], teacher="someone/teacher")
    assert 'teacher="someone/teacher"' in (tmp_path / "space" / "app.py").read_text()
    assert "[demo,text]" in (tmp_path / "space" / "requirements.txt").read_text()
    assert "models:\n- someone/teacher" in (tmp_path / "space" / "README.md").read_text()


def test_a_port_that_is_used_or_none_is_refused(runs):
    studio = Studio([str(runs / "four")], device="cpu")
    with pytest.raises(ValueError, match="expected a port of 1 to 65535, got 70000"):
        start(studio, port=70000)
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot be served at 127.0.0.1:{port}.*name a free --port"):
            start(studio, port=port)


def test_a_missing_student_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["demo", "--student", f"{tmp_path}/missing"])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    assert "found none" in error and "name a run, a checkpoint, an export or its Hub id" in error


def test_a_missing_gradio_is_one_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "ardistill.demo.page", raising=False)
    monkeypatch.delitem(sys.modules, "ardistill.demo.answers", raising=False)
    for option in ([], ["--space", f"{tmp_path}/space"]):
        with pytest.raises(SystemExit) as exit:
            main(["demo", "--student", f"{runs}/four", *option])
        assert exit.value.code == 2 and "pip install 'ardistill[demo]'" in capsys.readouterr().err
