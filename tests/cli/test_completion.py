"""A shell completes commands, options, values and paths; an editor checks recipes."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import shtab
import yaml

from ardistill.cli import build_parser, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "ardistill.bash"
    path.write_text(build_parser().get_completion_script("shtab-bash"))
    return path


def completed(script: Path, folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words, in a folder."""
    typed = " ".join(f"'{x}'" for x in ("ardistill", *words))
    state = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_ardistill"
    command = ["bash", "-c", state + '; printf "%s\\n" "${COMPREPLY[@]}"']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return {x.strip() for x in done.stdout.splitlines() if x.strip()}


def test_bash_completes_what_has_been_typed(script, tmp_path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    (tmp_path / "runs").mkdir()
    assert completed(script, tmp_path, "qui") == {"quickstart"}
    assert {"info", "verify", "repair"} <= completed(script, tmp_path, "trajectories", "")
    assert completed(script, tmp_path, "distill", "--history") == {"--history_layers"}
    assert completed(script, tmp_path, "distill", "--training.max_s") == {"--training.max_steps"}
    assert completed(script, tmp_path, "distill", "--mask", "M") == {"M1", "M2", "M3", "M4"}
    assert completed(script, tmp_path, "sample", "--student", "ru") == {"runs"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script(shell):
    assert "history_layers" in build_parser().get_completion_script(f"shtab-{shell}")


def test_without_shtab_its_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("jsonargparse._completions.find_spec", lambda name: None)
    monkeypatch.setattr("ardistill.cli.run._parser_once", build_parser)  # as in a process of its own
    with pytest.raises(SystemExit) as ended:
        main(["--print_completion", "shtab-bash"])
    assert ended.value.code == 2 and "pip install 'ardistill[completion]'" in capsys.readouterr().err


def test_the_page_names_scripts_that_there_are():
    page = (ROOT / "docs" / "integrations.md").read_text()
    shells = set(re.findall(r"shtab-(\w+)", page))
    assert shells >= {"bash", "zsh"} and shells <= set(shtab.SUPPORTED_SHELLS)


def test_the_schema_of_recipes_has_their_keys():
    schema = json.loads(build_parser().get_completion_script("jsonschema"))
    recipe = yaml.safe_load((ROOT / "recipes" / "fashion.yaml").read_text())
    for command, section in recipe.items():
        assert section.keys() <= schema["properties"][command]["properties"].keys()
