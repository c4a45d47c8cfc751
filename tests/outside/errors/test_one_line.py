"""Exceptions end a command with one line and an exit status, whatever streams and packages there are."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from apart import RECORD, apart, command, ended
from refusals import Refusal, check_refusal

from ardistill.cli import main
from ardistill.errors import cache_variable, explain, one_line

pytestmark = pytest.mark.slow


@pytest.fixture
def no_torch_fidelity_yet():
    """torch-fidelity, half of it perhaps, is imported within alone."""
    before = {name: module for name, module in sys.modules.items() if name.startswith("torch_fidelity")}

    def forget():
        for name in [x for x in sys.modules if x.startswith("torch_fidelity")]:
            del sys.modules[name]

    forget()
    yield forget
    forget()
    sys.modules.update(before)


def test_case_22_inception_without_torchvision_names_torchvision(world, capsys, monkeypatch, no_torch_fidelity_yet):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    words = "evaluate --student run --trajectories held_out --features inception --device cpu"
    check_refusal(Refusal(words, "need torchvision", "pip install torchvision"), capsys)
    no_torch_fidelity_yet()
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "torch_fidelity", None)
        missing.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
        check_refusal(Refusal(words, "need torch-fidelity", r"pip install 'ardistill\[fid\]'"), capsys)


def test_case_22_anything_else_is_a_bug_with_its_traceback_in_a_file(capsys):
    with pytest.raises(SystemExit) as exit, one_line(lambda: "ardistill x", lambda: ""):
        raise KeyError("of ours\nin two lines")
    said = capsys.readouterr().err
    assert exit.value.code == 1 and said.count("\n") == 1 and "this is a bug in ardistill 0." in said
    path = Path(said.partition("please report it with ")[2].partition(",")[0])
    assert "raise KeyError" in path.read_text() and "torch 2" in path.read_text()
    path.unlink()
    with pytest.raises(KeyError), one_line(lambda: "", lambda: "", debug=True):
        raise KeyError


def test_case_22_the_launcher_is_told_the_line(tmp_path, monkeypatch, capsys):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), one_line(lambda: "ardistill x", lambda: ""):
        raise ValueError("expected this, got that")
    line = "ardistill x (process 1): error: expected this, got that"
    assert capsys.readouterr().err == f"{line}\n"
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert line in str(ChildFailedError("ardistill", {1: failure}))


def test_case_22_nobody_reads_stdout(world):
    reading, writing = os.pipe()
    os.close(reading)

    def broken():
        os.dup2(writing, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115

    log = world.parent / "log"
    assert (
        ended(apart(lambda: main(["trajectories", "info", "--trajectories", "data"]), log, broken))
        == 128 + signal.SIGPIPE
    )
    assert log.read_text() == ""
    os.close(writing)


@pytest.mark.parametrize("closed", [(2,), (1,), (0, 1, 2)])
def test_case_22_closed_streams_are_no_bug(world, closed):
    log = world.parent / "log"
    show = "trajectories show --trajectories data --count 1 --device cpu"
    for words, status in ((show, 0), ("trajectories info --trajectories nowhere", 2)):
        assert ended(command(words.split(), log, closed=closed)) == status, log.read_text()
    assert "bug" not in log.read_text()
    assert Path("trajectories.png").is_file()


def test_case_22_text_that_the_terminal_cannot_show_is_escaped(world):
    log = world.parent / "log"
    show = "trajectories show --trajectories data --count 1 --device cpu --out"
    for out in ("日本.png", os.fsdecode(b"\xff.png")):
        assert ended(command([*show.split(), out], log, encoding="ascii")) == 0, log.read_text()
    assert log.read_text().count("1 trajectories in \\") == 2, log.read_text()


EXPLAINED = {
    "disk": (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device; free space"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "free space"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/x"), "may read and write"),
    "long": (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "shorter path"),
    "files": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "name a file"),
    "checkpoint": (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file"), "free space"),
    "memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "gradient_checkpointing.*lora"),
    "cpu-memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "batch size"),
    "compiler": (RuntimeError("backend='inductor' raised: no working C++ compiler"), "--training.compile false"),
    "worker": (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "fewer workers"),
    "peer": (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "another process"),
    "extra": (ModuleNotFoundError("No module named 'peft'", name="peft"), r"'ardistill\[lora\]'"),
    "store": (ModuleNotFoundError("No module named 's3fs'", name="s3fs"), r"'ardistill\[s3\]'"),
    "package": (ModuleNotFoundError("No module named 'gcsfs'", name="gcsfs"), "pip install gcsfs"),
    "reset": (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "check the network"),
    "colours": (ValueError("do \x1b[1mthis\x1b[0m"), "^do this$"),
    "json": (json.JSONDecodeError("Expecting value", "", 0), "write or download it again"),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_case_22_what_the_world_can_cause_is_explained(name):
    error, remedy = EXPLAINED[name]
    status, line = explain(error)
    check_refusal(Refusal(lambda: (_ for _ in ()).throw(error), "", remedy), None)
    assert status == 2 and "this is a bug" not in line
    wrapped = RuntimeError("Failed to import diffusers.x because of the following error")
    wrapped.__cause__ = error
    assert explain(wrapped) == (2, line)


def test_case_22_what_the_hub_says_is_explained():
    from huggingface_hub import errors

    for name, remedy in (
        ("GatedRepoError", "hf auth login"),
        ("RepositoryNotFoundError", "check the id"),
        ("LocalEntryNotFoundError", "HF_HUB_OFFLINE"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
        ("HfHubHTTPError", "check the network"),
    ):
        kind = getattr(errors, name)
        error = kind.__new__(kind, "401 Client Error")
        status, line = explain(error)
        assert status == 2 and remedy in line, line
    for bug in (KeyError("x"), TypeError("x"), RuntimeError("mat1 and mat2 shapes"), AssertionError()):
        assert explain(bug)[0] == 1


def test_case_23_a_cache_that_cannot_be_written_is_blamed_by_its_variable(world, monkeypatch, capsys):
    import datasets

    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere/me")
    for path, variable in (
        ("/nowhere/me/.cache/huggingface/hub/x", "HF_HOME"),
        ("/nowhere/me", "HF_HOME"),
        ("/nowhere/me/.cache/torch/hub", "TORCH_HOME"),
        ("/nowhere/me/.cache/other", "XDG_CACHE_HOME"),
        ("/somewhere/images", None),
    ):
        error = PermissionError(errno.EACCES, "Permission denied", path)
        assert cache_variable(error) == variable
        assert variable is None or f"set {variable} to a folder" in explain(error)[1]
    monkeypatch.setenv("HF_DATASETS_CACHE", "/dev/null/cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/dev/null/cache"))
    Path("local/prompts").mkdir(parents=True)
    Path("local/prompts/train.csv").write_text("prompt\na cat\n")
    check_refusal(Refusal(f"{RECORD} --prompts local/prompts", "/dev/null", "set HF_DATASETS_CACHE"), capsys)


def test_debug_raises_in_the_installed_command_too(monkeypatch):
    from ardistill.__main__ import main as installed

    monkeypatch.setattr(sys, "argv", ["ardistill", "trajectories", "info", "--trajectories", "nowhere", "--debug"])
    with pytest.raises(ValueError, match="expected trajectories"):
        installed()


def test_training_does_not_need_git(world, monkeypatch):
    from ardistill.training import environment

    monkeypatch.setenv("PATH", "/nowhere")
    assert environment()["git_commit"] is None and np.isfinite(environment()["threads"])
