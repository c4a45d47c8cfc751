"""Held-out trajectories are told from a student's own, and unusable data is refused with what to do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from pictures import picture, save_teachers
from refusals import Refusal, check_refusal

from ardistill import Teacher
from ardistill.cli import main
from ardistill.evaluation import run_of
from ardistill.training import encode as encode_images
from ardistill.trajectories import load_prompts


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return save_teachers(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Held-out trajectories, and a run whose folder is called student."""
    folder = tmp_path_factory.mktemp("fashion")
    options = ["--teacher", "zoo/fashion", "--guidance_scale", "1.25", "--solver_steps", "4", "--num_steps", "[2]"]
    for name, seed in (("train", "0"), ("held", "1")):
        main(["record", *options, "--num_trajectories", "10", "--seed", seed, "--out", f"{folder}/{name}"])
    main(
        ["distill", "--trajectories", f"{folder}/train", "--out", f"{folder}/student", "--num_steps", "2"]
        + ["--history_layers", "1", "--training.max_steps", "1", "--training.batch_size", "2"]
        + ["--training.tracker", "null"]
    )
    return folder


@pytest.mark.slow
def test_case_17_a_run_called_student_is_itself(fashion, capsys):
    assert run_of(f"{fashion}/student") == (fashion / "student", "")
    assert run_of(f"{fashion}/student/student") == (fashion / "student", "")
    (step,) = (fashion / "student" / "checkpoints").glob("step-*")
    assert run_of(str(step)) == (fashion / "student", f"-{step.name}")
    with pytest.raises(SystemExit):
        main(["evaluate", "--student", f"{fashion}/student", "--trajectories", f"{fashion}/train"])
    assert "expected held-out trajectories" in capsys.readouterr().err
    main(["evaluate", "--student", f"{fashion}/student", "--trajectories", f"{fashion}/held", "--json"])
    assert {"student", "teacher", "solver_2"} == set(json.loads(capsys.readouterr().out)["arms"])
    assert (fashion / "student" / "evaluation" / "report.html").is_file() and not (fashion / "evaluation").exists()
    main(["export", "--student", f"{fashion}/student", "--out", f"{fashion}/exported", "--json"])
    assert json.loads(capsys.readouterr().out)["evaluated"] is True


def test_case_17_a_link_is_followed_to_what_it_was_trained_on(fashion, tmp_path, capsys):
    (step,) = (fashion / "student" / "checkpoints").glob("step-*")
    for name, target in (("best", fashion / "student" / "student"), ("at", step)):
        (tmp_path / name).symlink_to(target)
        words = ["evaluate", "--student", f"{tmp_path}/{name}", "--out", f"{tmp_path}/out"]
        with pytest.raises(SystemExit):
            main([*words, "--trajectories", f"{fashion}/train"])
        assert "expected held-out trajectories" in capsys.readouterr().err


def test_case_17_what_cannot_be_checked_is_said(fashion, tmp_path, capsys):
    shutil.copytree(fashion / "student" / "student", tmp_path / "student")  # its run is not there
    assert run_of(str(tmp_path / "student")) == (tmp_path / "student", "")
    out = ["--out", str(tmp_path / "out")]
    main(["evaluate", "--student", str(tmp_path / "student"), "--trajectories", f"{fashion}/train", *out])
    assert "not checked whether the trajectories are held out" in capsys.readouterr().err
    shutil.copytree(fashion / "student", tmp_path / "later")
    settings = json.loads((tmp_path / "later" / "config.json").read_text())
    settings.pop("seal")
    settings |= {"data": settings["data"] | {"seed": 7}, "start": {"student": f"{fashion}/student"}}
    (tmp_path / "later" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):  # it began as a student of these trajectories
        main(["evaluate", "--student", f"{tmp_path}/later", "--trajectories", f"{fashion}/train", *out])
    assert "expected held-out trajectories" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory, dit):
    """Folders and files with a fault each."""
    folder = tmp_path_factory.mktemp("made")
    whole = picture(folder / "whole" / "a.jpg", size=(64, 64)).read_bytes()
    for name in ("cut/0/a.jpg", "cutref/a.jpg"):
        picture(folder / name).write_bytes(whole[: len(whole) // 2])
    picture(folder / "torn/0/a.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    for name in ("cat", "dog"):
        picture(folder / "words" / name / "a.png")
        picture(folder / "partial" / {"cat": "goldfish", "dog": "whale"}[name] / "a.png")
    picture(folder / "lone" / "cat" / "a.png")
    picture(folder / "flat" / "a.png")
    picture(folder / "twice" / "crane" / "a.png")
    picture(folder / "splits" / "train" / "a.png")
    for i in range(5):
        picture(folder / "order" / f"class{i + 8}" / "a.png")
    picture(folder / "sizes" / "a.png", size=(28, 28))
    picture(folder / "sizes" / "b.png", size=(28, 30))
    picture(folder / "colour" / "a.png", size=(28, 28))
    picture(folder / "few" / "a.png", 7, size=(28, 28), mode="L")
    (folder / "none").mkdir()
    (folder / "none" / "notes.md").touch()
    picture(folder / "rows" / "a.png")
    (folder / "rows" / "metadata.jsonl").write_text('{"file_name": "b.png", "label": 1}')
    picture(folder / "blank" / "a.png")
    (folder / "blank" / "metadata.csv").write_text("file_name,label\na.png,\n")
    np.savez(folder / "statistics.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    np.savez(folder / "floats.npz", arr_0=np.zeros((2, 4, 4, 3)))
    (folder / "no.npz").write_bytes(b"x")
    for name, text in {
        "plain.yaml": "a cat", "two.csv": "text,caption\na,b\n", "none.csv": "id,words\n1,a\n",
        "ragged.csv": "prompt,id\na cat, red,1\n", "empty.csv": "prompt\n", "null.jsonl": '{"prompt": null}',
        "object.json": '{"prompts": ["a"]}', "mixed.json": '["a", {"prompt": "b"}]', "blank.tsv": "prompt\tid\n\t1\n",
        "same.csv": "prompt,prompt\na,b\n", "half.jsonl": r'{"prompt": "a \ud83d"}', "deep.json": "[" * 100_000,
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    (folder / "wide.txt").write_bytes("a cat".encode("utf-16"))
    return folder


def encode(images, name="plain"):
    def act(made, dit, fashion):
        encode_images(str(made / images), Teacher.from_pretrained(dit / name), made / "real.safetensors")

    return act


def prompts(name):
    return lambda made, dit, fashion: load_prompts(str(made / name))


def evaluate(reference, features="fashion-classifier"):
    def act(made, dit, fashion):
        words = ["evaluate", "--student", f"{fashion}/student", "--trajectories", f"{fashion}/held", "--debug"]
        main([*words, "--out", f"{made}/report", "--features", features, "--reference", f"{made}/{reference}"])

    return act


REFUSALS = {
    "case 23: a truncated image": Refusal(encode("cut"), r"cut/0/a\.jpg cannot be read as an image", "replace it"),
    "a file that is no image": Refusal(encode("torn"), r"torn/0/a\.png cannot be read as an image", "replace it"),
    "a truncated reference": Refusal(evaluate("cutref"), r"cutref/a\.jpg (cannot be read|has colour)", "replace|give"),
    "names of two classes of five": Refusal(encode("words"), "5 classes, found 2", "name the folders by the classes'"),
    "case 24: one class folder": Refusal(encode("lone"), "5 classes, found 1", "0 to 4"),
    "images without class": Refusal(encode("flat"), r"found images beside none \(a.png\)", "move each into the folder"),
    "a name of two classes": Refusal(encode("twice", "named"), "the name of the teacher's classes 2 and 3", "name the"),
    "names of which one is no class": Refusal(encode("partial", "named"), "whale: no class", "rename them after"),
    "splits": Refusal(encode("splits"), "train are parts of a data set", "give the path of one"),
    "names in an uncertain order": Refusal(encode("order"), "order of .* is not certain", "name the folders by"),
    "metadata of an image that is not there": Refusal(encode("rows"), "1 of 1 rows name no image", "add the images"),
    "metadata without a label": Refusal(encode("blank"), "row 1: expected a class's number or name", "mend the row"),
    "a limit below 1": Refusal(
        lambda made, dit, _: encode_images("x", Teacher.from_pretrained(dit / "plain"), "y", limit=-1),
        "limit of 1 image or more, got -1",
        "leave it out",
    ),
    "a folder without images": Refusal(evaluate("none"), r"found none; it holds notes\.md", r"images \(.*webp"),
    "sizes": Refusal(evaluate("sizes"), r"a\.png is 28x28 and b\.png is 28x30", "scale them alike"),
    "colour beside grey": Refusal(evaluate("colour"), "a.png has colour", "give grey images"),
    "too few": Refusal(evaluate("few"), "6 real images or more", "give thousands"),
    "case 24: statistics": Refusal(evaluate("statistics.npz"), "found statistics", "give a folder of images or such"),
    "floats": Refusal(evaluate("floats.npz"), "found float64 of shape", "give a folder of images or such a file"),
    "no archive": Refusal(evaluate("no.npz"), "cannot be read as one", "give a folder of images or such a file"),
    "no reference": Refusal(evaluate("absent"), "expected a folder of images, found none", "give the path"),
    "case 16: an unknown kind": Refusal(prompts("plain.yaml"), r"known kind \(\.txt, .*, got \.yaml", "name it after"),
    "two columns": Refusal(prompts("two.csv"), "found text and caption", r"name the right one, as in two\.csv:text"),
    "no such column": Refusal(prompts("none.csv"), "found id, words", "name the right one"),
    "a comma without quotes": Refusal(prompts("ragged.csv"), "row 2: expected 2 fields", "put quotes"),
    "a header alone": Refusal(prompts("empty.csv"), "holds no prompts", "give a file with one or more"),
    "null": Refusal(prompts("null.jsonl"), "prompt 1: expected text, got None", "mend the row"),
    "an empty prompt": Refusal(prompts("blank.tsv"), "prompt 1: expected text, got an empty one", "mend the row"),
    "an object": Refusal(prompts("object.json"), "expected a list .* got an object with the keys prompts", "save the"),
    "mixed rows": Refusal(prompts("mixed.json"), "objects alone or strings alone", "write all rows alike"),
    "two columns of one name": Refusal(prompts("same.csv"), "different names, found prompt twice", "rename one"),
    "half a character": Refusal(prompts("half.jsonl"), r"prompt 1: .* got half of one in 'a .ud83d'", "take it out"),
    "JSON without end": Refusal(prompts("deep.json"), "is not JSON", "save one object a line"),
    "UTF-16": Refusal(prompts("wide.txt"), "cannot be read as text", "save it as UTF-8"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name, made, dit, fashion, capsys):
    check_refusal(REFUSALS[name], capsys, made, dit, fashion)
    assert not (made / "real.safetensors").exists() and not (made / "report").exists()
