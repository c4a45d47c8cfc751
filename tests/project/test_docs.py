"""What the documentation and the project's files name exists, and says the same in both places."""

import importlib.util
import json
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import ardistill

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = "src|tests|docs|benchmarks|examples|integrations|recipes|scripts"
DOCS = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "integrations" / "comfyui" / "README.md", *DOCS]
ELSEWHERE = {"docs/piFlow.md", "examples/consistency_distillation"}
"""Files of other projects that a page names."""


def named(pattern: str, page: Path) -> list[str]:
    return sorted({x for code in re.findall(r"`([^`\n]+)`", page.read_text()) for x in re.findall(pattern, code)})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_and_name_on_a_page_exists(page):
    for path in named(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]+\b", page):
        assert (ROOT / path).exists() or path in ELSEWHERE, path
    for dotted in named(r"(?<![\w/.-])ardistill(?:\.\w+)+", page):
        pkgutil.resolve_name(dotted)


def test_every_room_has_a_page():
    rooms = {x.parent.name for x in (ROOT / "src" / "ardistill").glob("*/__init__.py")} - {
        "cli"
    }  # docs/command-line.md
    for room in rooms:
        assert f"automodule:: ardistill.{room}\n" in (ROOT / "docs" / "api" / f"{room}.md").read_text()


def test_every_page_is_in_the_table_of_contents():
    for folder in (ROOT / "docs", ROOT / "docs" / "api"):
        shown = re.findall(r"^[\w/-]+$", (folder / "index.md").read_text(), re.M)
        assert {x.stem for x in folder.glob("*.md")} - {"index"} <= set(shown)


def test_every_command_is_on_the_page_of_commands():
    from ardistill.cli import COMMANDS

    page = (ROOT / "docs" / "command-line.md").read_text()
    for name, command in COMMANDS.items():
        for words in [f"{name} {action}" for action in command] if isinstance(command, dict) else [name]:
            assert f"command-help:: {words}\n" in page


def test_the_study_is_the_committed_results():
    """The figures of docs/study.md, by its summary; python benchmarks/study/summary.py writes both."""
    page = (ROOT / "docs" / "study.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "study" / "summary.json").read_text())
    assert f"FD {found['fd_ard_adversarial']:.3f}, the teacher {found['fd_teacher']:.3f}" in page


def test_the_page_on_performance_is_the_committed_results():
    spec = importlib.util.spec_from_file_location("performance", ROOT / "benchmarks" / "performance.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "run python benchmarks/performance.py"


def test_versions_agree():
    version = PROJECT["project"]["version"]
    assert ardistill.__version__ == version
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_hooks_are_the_tools_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    check = makefile[makefile.index("check: setup") : makefile.index("DOCS_STAMP :=")]
    tools = {"ruff check", "ruff format", "mypy", "lint-imports"}
    assert all(f".venv/bin/{tool}" in check for tool in tools)
    assert {
        " ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]).partition(" --")[0] for hook in hooks
    } == tools


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_what_a_workflow_runs_exists(workflow):
    steps = [x for job in yaml.safe_load(workflow.read_text())["jobs"].values() for x in job["steps"] if "run" in x]
    for step in steps:
        for path in re.findall(r"scripts/\w+\.sh", step["run"]):
            assert (ROOT / path).stat().st_mode & 0o100, path
        for target in re.findall(r"^make (\w+)", step["run"]):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_the_figures_for_a_decision_are_the_studys():
    """The table of docs/when-to-use.md names arms of docs/study.md and has their FDs, without the spread."""
    page, study = ((ROOT / "docs" / name).read_text() for name in ("when-to-use.md", "study.md"))
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| \d+ \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert len(rows) == 10
    for arm, to_data, to_teacher in rows:
        line = next(x for x in study.splitlines() if x.startswith(f"| {arm} |"))
        cells = [cell.split()[0] for cell in line.split("|")[4:6]]
        assert cells == [to_teacher, to_data], arm
