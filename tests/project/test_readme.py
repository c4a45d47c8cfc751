"""What the README, the documentation and the recipes say is what runs."""

import functools
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
PAGES = {"README.md": README} | {f"docs/{x.name}": x.read_text() for x in sorted((ROOT / "docs").glob("*.md"))}
RECIPES = sorted(x for x in (ROOT / "recipes").glob("*.yaml") if not x.name.startswith("study_"))  # tests/studies


def commands(text: str) -> list[list[str]]:
    """Every `ardistill ...` line of a page's blocks of shell commands, as arguments."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.S | re.M)
    blocks = "\n".join(block for language, block in fenced if language in ("", "sh")).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in blocks.splitlines() if "ardistill " in line]
    return [line[line.index("ardistill") + 1 :] for line in words if "ardistill" in line]


PARSER = functools.cache(build_parser)
SHOWN = [(page, words) for page, text in PAGES.items() for words in commands(text)]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda x: x if isinstance(x, str) else x[0])
def test_every_command_of_the_readme_and_the_documentation_parses(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named from here
    PARSER().parse_args(words)


def test_the_readme_shows_the_way():
    shown = [words[0] for words in commands(README)]
    assert shown.index("record") < shown.index("distill") < shown.index("evaluate") < shown.index("export")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_the_readme_is_read_in_a_minute():
    assert len(README.splitlines()) <= 150


def test_the_readmes_map_names_every_room():
    rooms = {x.parent.name for x in (ROOT / "src" / "ardistill").glob("*/__init__.py")}
    shown = README[README.index("```text") :]
    assert [x for x in sorted(rooms) if f"{x}/" not in shown] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_whole(path):
    parser = PARSER()
    check_recipe(str(path), parser)
    for command in yaml.safe_load(path.read_text()):
        assert command in COMMANDS
        parser.parse_args(["--config", str(path), command])


def script(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentations_tables_are_the_committed_run_and_the_registry():
    figures = json.loads((ROOT / "benchmarks" / "results" / "quickstart.json").read_text())
    seeds, arms = script("benchmarks/quickstart_seeds.py"), figures["arms"]
    assert "\n".join(seeds.table(figures)) in PAGES["docs/results.md"]
    assert "\n".join(seeds.readme_table(figures)) in README
    times = arms["teacher"]["ms_per_image"]["mean"] / arms["ard"]["ms_per_image"]["mean"]
    given_up = arms["ard"]["fd"]["mean"] - arms["teacher"]["fd"]["mean"]
    assert f"{times:.1f} times as fast for {given_up:.3f} more FD" in README
    assert f"images: {figures['real_floor']:.3f})" in README
    nearer = [
        -100 * found["difference"] / figures["runs"][seed]["arms"]["step_distillation"]["feature_distance_to_teacher"]
        for seed, found in figures["ard_minus_step_distillation"].items()
    ]
    assert f"{' and '.join(f'{x:.1f}' for x in nearer)} % nearer to its teacher's than without" in README
    assert "\n".join(script("scripts/family_table.py").table()) in PAGES["docs/families.md"]


def test_the_fashion_recipe_runs_from_record_to_export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = ["--config", str(ROOT / "recipes" / "fashion.yaml")]
    main([*recipe, "record", "--num_trajectories", "4"])
    main([*recipe, "distill", "--training.max_steps", "2", "--training.batch_size", "2"])
    main([*recipe, "export"])
    assert (tmp_path / "runs" / "fashion" / "export" / "model_index.json").is_file()
    assert "trust_remote_code" in capsys.readouterr().out


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "record(" in b)
    for size, tiny in {"=2048": "=4", "=1000": "=8", "max_steps=120": "max_steps=2, batch_size=2"}.items():
        assert size in block
        block = block.replace(size, tiny)
    exec(block, {})
    assert (tmp_path / "runs" / "python" / "student" / "model_index.json").is_file()
    assert "step distillation" not in (printed := capsys.readouterr().out) and "teacher" in printed
