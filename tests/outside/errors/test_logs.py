"""Progress bars and warnings in a log file."""

import io
import subprocess
import sys
import warnings

import pytest
from apart import DISTILL, RECORD, apart, command, ended

from ardistill import progress
from ardistill.cli import main
from ardistill.errors import ready_process

pytestmark = pytest.mark.slow


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_case_25_a_log_file_gets_a_line_every_half_minute(monkeypatch):
    clock, log = Clock(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.bar(total=600, desc="record", unit="shard") as bar:
        bar._time = clock
        bar.start_t = bar.last_print_t = clock.now
        for _ in range(600):
            clock.now += 0.5
            bar.set_postfix(loss=1.0)
            bar.update()
    lines = log.getvalue().splitlines()
    assert 10 <= len(lines) <= 13 and "\r" not in log.getvalue()
    assert lines[-1].startswith("record: 100%") and "loss=1" in lines[-1]


def test_case_25_the_last_line_of_a_log_is_not_written_twice(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(total=2, desc="record", mininterval=0) as bar:
        bar.update()
        bar.update()
    assert [line[:12] for line in sys.stderr.getvalue().splitlines()] == [
        "record:   0%",
        "record:  50%",
        "record: 100%",
    ]


def test_case_25_a_whole_way_without_a_terminal_is_a_few_lines(world):
    words = f"{DISTILL} --out new --training.max_steps 60 --training.checkpoint_every 60"
    log = world.parent / "log"
    recording = f"{RECORD} --num_trajectories 60 --shard_size 2".split()
    assert ended(apart(lambda: main(recording), log)) == 0
    assert ended(command(words.split(), log)) == 0
    text = log.read_text()
    assert len(text.splitlines()) <= 14 and "\r" not in text, text


def test_case_25_a_warning_is_one_line_once(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        ready_process()
        for line in (1, 2):
            warnings.warn_explicit("few\nsamples", UserWarning, "a.py", line)
    assert capsys.readouterr().err == "warning: few samples\n"


def test_case_25_bars_of_other_packages_follow_the_rule():
    script = "from ardistill.progress import calm_libraries as c; c(); import time; from tqdm.auto import tqdm\n"
    script += "for _ in tqdm(range(20)): time.sleep(0.02)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
    assert said.count("\r") <= 2, said
