"""Recording by several processes, killed or not, leaves what one alone makes."""

import json
import os
import subprocess
import sys

import pytest
from faults.killing import (
    contents,
    files_of_recording,
    is_recording,
    kill_and_restart,
    record_arguments,
    save_tiny_teacher,
    state_of_recording,
)

from ardistill.cli import main
from ardistill.trajectories import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A teacher and what one process records of it."""
    folder = tmp_path_factory.mktemp("recording")
    teacher = save_tiny_teacher(folder / "teacher")
    main(record_arguments(teacher, folder / "data", 600, 4))
    return teacher, contents(folder / "data")


@pytest.mark.slow
def test_three_recorders_killed_at_random_and_one_more(undisturbed, tmp_path):
    """benchmarks/faults.py kills many more, with fresh interpreters too (--fresh)."""
    teacher, expected = undisturbed
    out = tmp_path / "data"
    rounds = kill_and_restart(
        record_arguments(teacher, out, 600, 4), tmp_path / "log", processes=3, rounds=1, most=40, seed=0, fresh=False,
        progress=lambda: files_of_recording(out), writing=lambda: is_recording(out),
        look=lambda: state_of_recording(out),
    )  # fmt: skip
    assert rounds[0]["killed"] >= 1, (rounds, (tmp_path / "log").read_text()[-1000:])
    assert contents(out) == expected and verify(out, progress=False).whole


@pytest.mark.slow
def test_two_recorders_under_torchrun(undisturbed, tmp_path):
    """What `accelerate launch` starts several processes with; on CPUs alone it starts but one."""
    teacher, expected = undisturbed
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--tee", "3", "-m", "ardistill"]
    command += [*record_arguments(teacher, tmp_path / "data", 600, 4), "--json"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"[default{rank}]:" in done.stdout + done.stderr for rank in range(2))
    said = [line.partition(":")[2] for line in done.stdout.splitlines() if "num_shards" in line]
    assert [json.loads(line)["num_shards"] for line in said] == [150]  # by the first alone
    assert contents(tmp_path / "data") == expected
