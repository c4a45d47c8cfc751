"""Interrupts end a command with one line that says how to go on."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apart import DISTILL, RECORD, apart, command, ended

from ardistill.cli import main
from ardistill.progress import bar

pytestmark = pytest.mark.slow

SAMPLE = "sample --student run --out out.png --device cpu"
INTERRUPTED = {  # command, what tells that it is at it, what it says
    "record": (f"{RECORD} --num_trajectories 4000 --shard_size 4", lambda: any(Path("out").glob("shard-*")), "missing"),
    "distill": (
        f"{DISTILL} --out out --training.max_steps 5000 --training.checkpoint_every 2",
        lambda: any(Path("out/checkpoints").glob("step-????????")),
        r"from out/checkpoints/step-0000",
    ),
    "sample": ("sample --student run --out out.npz --count 50000 --device cpu", lambda: True, "run the same command"),
    "evaluate": (
        "evaluate --student run --trajectories held_out --out out --device cpu", lambda: True, "run the same command"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name,number", [*((x, signal.SIGINT) for x in INTERRUPTED), ("distill", signal.SIGTERM), ("record", signal.SIGHUP)]
)
def test_case_22_an_interrupt_is_one_line_that_says_how_to_go_on(world, name, number):
    words, begun, said = INTERRUPTED[name]
    log = world.parent / "log"
    pid = command(words.split(), log) if name == "distill" else apart(lambda: main(words.split()), log)
    limit = time.time() + 60
    while not (begun() and log.exists()) and time.time() < limit:
        time.sleep(0.01)
    time.sleep(0.05 if name == "evaluate" else 0.3)  # of six samples it is soon done
    os.kill(pid, number)
    assert ended(pid) == 128 + number, log.read_text()
    lines = log.read_text().splitlines()
    told = [line for line in lines if "ended by" in line]
    assert told == lines[-1:] and re.match(rf"ardistill( {name})?: ended by {number.name}; ", told[0]), lines
    assert said in told[0] and "Traceback" not in log.read_text()


class Loses:
    """Gets a signal where Python loses the exception."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_signal_whose_exception_was_lost_ends_the_next_step(tmp_path, by_hand):
    def act():
        with bar(None if by_hand else range(3), total=3) as steps:
            for step in range(3) if by_hand else steps:
                (tmp_path / f"step-{step}").touch()
                Loses()
                if by_hand:
                    steps.update()

    assert ended(apart(act, tmp_path / "log")) == 130
    assert [x.name for x in tmp_path.glob("step-*")] == ["step-0"]


def loads(pid, library):
    with contextlib.suppress(OSError):
        return library in Path(f"/proc/{pid}/maps").read_text()


def test_case_22_an_interrupt_amid_imports_is_one_line(world):
    command = [sys.executable, "-m", "ardistill", *SAMPLE.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.time() + 60
    while not loads(process.pid, "libtorch_python") and time.time() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "", error
    assert error == "ardistill sample: ended by SIGINT; files written so far are whole, run the same command again\n"


def test_case_22_an_interrupt_under_accelerate_is_one_line_of_ours(world):
    """Whatever accelerate's launcher and torch's elastic agent say of it themselves."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "ardistill", *DISTILL.split(), "--out", "out"]
    command += ["--training.max_steps", "5000", "--training.checkpoint_every", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with open("log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        limit = time.time() + 120
        while not any(Path("out/checkpoints").glob("step-????????")) and time.time() < limit:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        process.wait(60)
    text = Path("log").read_text()
    told = [line for line in text.splitlines() if line.startswith("ardistill distill")]
    assert len(told) == 1 and "ended by SIGINT; the same command again goes on from out/checkpoints/step-" in told[0]
    assert "src/ardistill" not in text, text  # no frame of ours
