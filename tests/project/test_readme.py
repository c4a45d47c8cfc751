"""What the README and the recipes say is what runs."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from ardistill.cli import COMMANDS, build_parser, check_recipe, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RECIPES = sorted(x for x in (ROOT / "recipes").glob("*.yaml") if not x.name.startswith("study_"))  # tests/test_study.py


def commands() -> list[list[str]]:
    """Every `ardistill ...` line of the README's blocks of code, as arguments."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    blocks = "\n".join(block for language, block in fenced if not language).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in blocks.splitlines() if "ardistill " in line]
    return [line[line.index("ardistill") + 1 :] for line in words if "ardistill" in line]


@pytest.mark.parametrize("arguments", commands(), ids=lambda words: words[0])
def test_every_command_of_the_readme_parses(arguments):
    build_parser().parse_args(arguments)


def test_the_readme_shows_the_way():
    shown = [words[0] for words in commands()]
    assert shown.index("record") < shown.index("distill") < shown.index("evaluate") < shown.index("export")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_whole(path):
    parser = build_parser()
    check_recipe(str(path), parser)
    for command in yaml.safe_load(path.read_text()):
        assert command in COMMANDS
        parser.parse_args(["--config", str(path), command])


def script(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_tables_are_the_committed_run_and_the_registry():
    figures = json.loads((ROOT / "benchmarks" / "results" / "quickstart.json").read_text())
    assert "\n".join(script("benchmarks/quickstart_seeds.py").table(figures)) in README
    assert "\n".join(script("docs/family_table.py").table()) in README


def test_the_fashion_recipe_runs_from_record_to_export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = ["--config", str(ROOT / "recipes" / "fashion.yaml")]
    main([*recipe, "record", "--num_trajectories", "4"])
    main([*recipe, "distill", "--training.max_steps", "2", "--training.batch_size", "2"])
    main([*recipe, "export"])
    assert (tmp_path / "runs" / "fashion" / "export" / "model_index.json").is_file()
    assert "trust_remote_code" in capsys.readouterr().out


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "record(" in b)
    exec(block.replace("max_steps=20", "max_steps=2"), {})
    assert (tmp_path / "runs" / "python" / "export" / "model_index.json").is_file()
