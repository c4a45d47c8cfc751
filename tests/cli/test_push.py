"""Pushes at the command line, to a stand-in of the Hub; and the commands of docs/publishing.md."""

import json
import shutil
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import ModelCard
from project.test_readme import commands

from ardistill.cli import main

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "publishing.md"
EXPORT = "export --student run --out out --push you/mine --json"


@pytest.fixture
def hub(world, tmp_path, monkeypatch):
    with Hub({"hf_secret": "you"}) as hub:
        hub.point_here(monkeypatch, tmp_path / "home", "hf_secret")
        yield hub


def fails(capsys, words: str) -> str:
    with pytest.raises(SystemExit) as exit:
        main(words.split())
    assert exit.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "hf_secret" not in message
    return message


def test_every_command_of_the_page_runs(hub, capsys):
    for folder, name in {"runs": "mine", "exports": ""}.items():
        Path(folder).mkdir()
        if name:
            shutil.move("run", f"{folder}/{name}")
    shutil.move("data", "trajectories")
    shown = commands(PAGE.read_text())
    assert [words[0] for words in shown] == ["export", "trajectories", "distill"]
    for words in shown:
        tiny = ["--training.max_steps", "1", "--training.batch_size", "2"] if words[0] == "distill" else []
        main([*words, *tiny])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"{hub.url}/you/mine", f"{hub.url}/datasets/you/recording"]
    card = ModelCard(hub.repositories["model", "you/mine"].files["README.md"].decode())
    assert card.data.license == "mit" and "zoo/fashion" in card.text
    assert json.loads(Path("runs/second/environment.json").read_text())["dataset"] == "you/recording"


def test_the_same_command_continues_an_interrupted_push(hub, capsys):
    hub.fails("POST", "/commit/", times=100)
    assert "nothing is lost, the same command again uploads what is missing" in fails(capsys, EXPORT)
    before = {str(x): x.stat().st_mtime_ns for x in Path("out").rglob("*")}
    hub.mend()
    main(EXPORT.split())
    assert json.loads(capsys.readouterr().out)["url"] == f"{hub.url}/you/mine"
    assert {str(x): x.stat().st_mtime_ns for x in Path("out").rglob("*")} == before
    assert "to be empty" in fails(capsys, EXPORT.replace(" --push you/mine", ""))
    Path("other").mkdir()
    Path("other/file").touch()
    assert "to be empty" in fails(capsys, EXPORT.replace("--out out", "--out other"))


def test_what_cannot_be_pushed_is_not_exported(hub, capsys, monkeypatch):
    assert "expected a user or organization" in fails(capsys, EXPORT.replace("you/mine", "mine"))
    assert "expected the identifier of a licence" in fails(capsys, f"{EXPORT} --license Mine!")
    assert "expected Hub ids of data sets" in fails(capsys, f"{EXPORT} --datasets [mine]")
    monkeypatch.delenv("HF_TOKEN")
    assert "expected a token of the Hub, found none" in fails(capsys, EXPORT)
    assert "expected a token" in fails(capsys, "trajectories push --trajectories data --push you/recording")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in fails(capsys, EXPORT)
    assert not Path("out").exists() and hub.repositories == {}


def test_a_private_push(hub, capsys):
    main([*EXPORT.split(), "--private", "true", "--datasets", "[you/recording]"])
    there = hub.repositories["model", "you/mine"]
    assert there.private and ModelCard(there.files["README.md"].decode()).data.datasets == ["you/recording"]
