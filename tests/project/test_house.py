"""The rules of the house: short files, short functions, rooms whose imports go one way."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "ardistill"
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
LINES, FUNCTION = 400, 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_and_no_function_is_long(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LINES, path
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            is_docstring = ast.get_docstring(node) is not None
            length = node.end_lineno - node.lineno + 1 - (is_docstring and first.end_lineno - first.lineno + 1)
            assert length <= FUNCTION, f"{path}: {node.name} has {length} lines without its docstring"


def test_every_module_is_in_a_layer():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(x for x in contracts if x["type"] == "layers")
    assert layers["exhaustive"] and layers["containers"] == ["ardistill"]
    named = {name.strip() for layer in layers["layers"] for name in layer.split(":")}
    assert not any("(" in name for name in named)
    assert named == {x.stem for x in PACKAGE.iterdir() if x.suffix == ".py" or (x / "__init__.py").is_file()} - {
        "__init__"
    }


def test_imports_go_one_way():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    found = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout
