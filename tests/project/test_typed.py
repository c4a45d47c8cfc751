"""The package is typed to those who use it: their mypy reads its annotations, and finds their mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

import ardistill

pytestmark = pytest.mark.slow

USE = """
from pathlib import Path

import ardistill
from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, export, record
from ardistill.evaluation import compare_students

def way(folder: Path) -> None:
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25, device="cpu")
    record(teacher, folder / "trajectories", num_trajectories=8)
    data = TrajectoryDataset(folder / "trajectories", num_steps=2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=7))
    student = distill(student, data, folder / "run", TrainingConfig(max_steps=2))
    reveal_type(student)
    print(compare_students([folder / "run"], folder / "trajectories", folder / "comparison").table())
    export(student, teacher, folder / "student")
    version: str = ardistill.__version__
    print(version)
"""
WRONG = """
from ardistill import TrainingConfig

TrainingConfig(max_steps="many")
TrainingConfig(steps=3)
"""


SETTINGS = """
[mypy]
strict = true
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*,diffusers.*,transformers.*,accelerate.*,numpy.*,matplotlib.*,pyarrow.*,peft.*,datasets.*]
follow_imports = skip
"""
"""Strict on the caller; what the package builds on is not read, which would take minutes."""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of two files of somebody else's, outside of this project."""
    folder = tmp_path_factory.mktemp("downstream")
    for name, text in {"use.py": USE, "wrong.py": WRONG, "mypy.ini": SETTINGS}.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(folder / "cache"), "use.py", "wrong.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_the_public_names_are_typed_downstream(said):
    assert (Path(ardistill.__file__).parent / "py.typed").is_file()
    lines = [line for line in said.splitlines() if line.startswith("use.py")]
    assert len(lines) == 1 and "Revealed type is" in lines[0] and "Student" in lines[0], said


def test_mistakes_are_found_downstream(said):
    wrong = [line for line in said.splitlines() if line.startswith("wrong.py") and "error" in line]
    assert len(wrong) == 2 and '"str"; expected "int"' in wrong[0] and 'keyword argument "steps"' in wrong[1], said
