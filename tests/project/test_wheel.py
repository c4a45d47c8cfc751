"""The wheel and the sdist are whole and small, and the wheel answers in an environment of its own.

scripts/check_wheel.sh installs the wheel with everything that it needs from the package index; here the packages are
those of the tests, and nothing is downloaded.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LARGEST = 30e6
"""Bytes that a wheel may have."""


def build(source: Path, out: Path, *targets: str) -> None:
    words = [x for target in targets for x in ("--target", target)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(out), *words]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


def contents(wheel: Path) -> dict[str, str]:
    """The checksum of each file in a wheel."""
    with zipfile.ZipFile(wheel) as file:
        return {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "wheel", "sdist")
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    return next(built.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.stat().st_size < LARGEST
    found = [x for x in contents(wheel) if ".dist-info/" not in x]
    source = ROOT / "src"
    expected = {str(x.relative_to(source)) for x in source.rglob("*") if x.is_file() and "__pycache__" not in x.parts}
    assert set(found) == expected and "ardistill/py.typed" in found
    assert [x for x in found if x.startswith("ardistill/zoo/") and x.endswith(".safetensors")]


def test_the_sdist_makes_the_same_wheel(built, wheel, tmp_path):
    sdist = next(built.glob("*.tar.gz"))
    shutil.unpack_archive(sdist, tmp_path)
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert (source / "tests" / "conftest.py").is_file()
    build(source, tmp_path / "again", "wheel")
    assert contents(next((tmp_path / "again").glob("*.whl"))) == contents(wheel)


def test_the_wheel_answers_in_an_environment_of_its_own(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    ours = [x for x in sys.path if x.endswith("-packages")]
    (packages / "tests_packages.pth").write_text("\n".join(ours))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object) -> str:
        words = [str(x) for x in command]
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(words, check=False, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    place = run(python, "-c", "import ardistill; print(ardistill.__file__)")
    assert Path(place.strip()).is_relative_to(packages)
    version = f"ardistill {wheel.name.split('-')[1]}\n"
    assert run(python.with_name("ardistill"), "--version") == run(python, "-m", "ardistill", "--version") == version
    assert "--num_trajectories" in run(python.with_name("ardistill"), "quickstart", "--help")
