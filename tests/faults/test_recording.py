"""Recording by several processes, killed or not, leaves what one alone makes; fresh interpreters, as users start them."""

import json
import os
import subprocess
import sys

import pytest
from faults.killing import (
    contents,
    files_of_recording,
    kill_and_restart,
    record_arguments,
    save_tiny_teacher,
    state_of_recording,
)

from ardistill.cli import main
from ardistill.maintenance import verify


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A teacher and what one process records of it."""
    folder = tmp_path_factory.mktemp("recording")
    teacher = save_tiny_teacher(folder / "teacher")
    main(record_arguments(teacher, folder / "data", 600, 4))
    return teacher, contents(folder / "data")


def test_three_recorders_killed_at_random_and_one_more(undisturbed, tmp_path):
    """benchmarks/faults.py kills many more."""
    teacher, expected = undisturbed
    out = tmp_path / "data"
    rounds = kill_and_restart(
        record_arguments(teacher, out, 600, 4), tmp_path / "log", processes=3, rounds=1, longest=0.5, seed=0,
        progress=lambda: files_of_recording(out), fresh=True, look=lambda: state_of_recording(out),
    )  # fmt: skip
    assert rounds[0]["killed"] >= 1, (rounds, (tmp_path / "log").read_text()[-1000:])
    assert contents(out) == expected and verify(out, progress=False).whole


def test_two_recorders_under_accelerate_launch(undisturbed, tmp_path):
    teacher, expected = undisturbed
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "ardistill"]
    command += [*record_arguments(teacher, tmp_path / "data", 600, 4), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["num_shards"] == 150  # said once
    assert contents(tmp_path / "data") == expected
