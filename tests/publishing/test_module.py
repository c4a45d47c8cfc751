"""The text of the module that an export carries, for every family."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ardistill.core import experts
from ardistill.families import FAMILIES, Family, register_family
from ardistill.publishing.module import PARTS, pipeline_source

ROOT = Path(__file__).parents[2]


def ruff(command, source):
    return subprocess.run(
        [Path(sys.executable).with_name("ruff"), *command, "--config", ROOT / "pyproject.toml", "-"],
        input=source, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"Asking", "DiT"}))
def test_the_module_is_short_clean_and_has_no_undefined_names(name):
    source = pipeline_source(FAMILIES[name].pipeline, name)
    own = 40 if FAMILIES[name].linear[0] or FAMILIES[name].by_row[0] else 0  # its stand-in, in its exports alone
    assert len(source.splitlines()) <= 1000 + own
    found = ruff(["check", "--output-format", "concise"], source)
    assert found.returncode == 0, found.stdout
    assert ruff(["format"], source).stdout == source
    assert "ardistill." not in "".join(ast.unparse(x) for x in ast.parse(source).body if "import" in ast.unparse(x)[:6])


@pytest.mark.parametrize("of_two", [False, True])
def test_the_module_is_the_code_of_core(of_two):
    """Every function and class of core is in it, statement by statement, and nothing else but the architecture's.

    What draws with two transformers is in the module of a student of two alone.
    """
    module = ast.parse(pipeline_source("ZImagePipeline", "ZImageTransformer2DModel", of_two))

    def bodies(tree):
        found = {}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                node.body = [
                    x for x in node.body if not isinstance(x, ast.Expr) or not isinstance(x.value, ast.Constant)
                ]
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[node.name] = ast.unparse(node)
        return found

    parts = (*PARTS, experts) if of_two else PARTS
    core = {name: x for part in parts for name, x in bodies(ast.parse(Path(part.__file__).read_text())).items()}
    exported = bodies(module)
    assert {name: exported[name] for name in core} == core
    assert set(exported) - set(core) == {"count_padded"}


def test_the_module_of_two_transformers_is_short_and_clean():
    source = pipeline_source("WanPipeline", "WanTransformer3DModel", True)
    assert len(source.splitlines()) <= 1100  # of which 100 join two students; exports of one do not have them
    found = ruff(["check", "--output-format", "concise"], source)
    assert found.returncode == 0, found.stdout
    assert ruff(["format"], source).stdout == source


def test_every_file_of_core_is_in_the_module():
    files = {x.name for x in (ROOT / "src" / "ardistill" / "core").glob("*.py")}
    assert {Path(part.__file__).name for part in (*PARTS, experts)} == files - {"__init__.py"}


def test_a_function_without_source_is_refused():
    from diffusers import SanaTransformer2DModel

    class Unnamed(SanaTransformer2DModel):
        pass

    options = {"block_lists": ("blocks",), "attention": ("attn",), "head": ("out",), "pipeline": "DiTPipeline"}
    register_family(Unnamed, Family(**options, image_tokens=lambda transformer, x: 1))
    with pytest.raises(ValueError, match="image_start of the family to be functions of a file"):
        pipeline_source("DiTPipeline", "Unnamed")
