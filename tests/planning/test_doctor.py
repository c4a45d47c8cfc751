"""`doctor` says what is here, tries it, and names a remedy for what is wrong."""

import json
from importlib import metadata

import pytest
import torch
from pretend_device import PretendDevice

from ardistill import doctor
from ardistill.cli import main
from ardistill.planning import machine
from ardistill.planning.self_test import SelfTest

TOKEN = "hf_" + "x" * 34


@pytest.fixture
def run(capsys, monkeypatch):
    """Calls the command and returns its status and what it printed."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def call(*words: str) -> tuple[int, str]:
        status = 0
        try:
            main(["doctor", "--device", "cpu", *words])
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        return status, printed.out

    return call


@pytest.mark.slow
def test_a_sound_device_passes_the_self_test(run):
    with PretendDevice():
        status, text = run("--device", "pretend")
    assert status == 0 and text.endswith("Nothing is wrong.\n")
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert f"torch {torch.__version__}" in rows["versions"] and "mixed_precision auto is no" in rows["precision"]
    assert "trained one step and drew on pretend in" in rows["self-test"] and "a token is there" in rows["Hub"]
    assert "lora installed" in rows["extras"] and "GB free" in rows["disk"]


def test_the_facts_are_data_too(run):
    status, text = run("--self_test", "false", "--json")
    found = json.loads(text)
    assert status == 0 and found["problems"] == [] and found["self_test"] is None
    assert found["hub"]["token"] is True and found["hub"]["offline"] is True
    assert found["device"]["mixed_precision"] == "no" and found["device"]["compile"] is False
    assert found["threads"]["threads"] == torch.get_num_threads() and found["folders"]["runs"]["free"] > 0
    assert found["extras"]["lora"] == {"installed": True, "install": "pip install 'ardistill[lora]'"}


@pytest.mark.parametrize(
    ("outcome", "said"),
    [(RuntimeError("CUDA driver version is insufficient"), "the self-test failed"), (0.5, "differs by 0.5")],
)
def test_a_device_that_fails_is_a_problem(outcome, said, run, monkeypatch):
    def fails(device):
        if isinstance(outcome, Exception):
            raise outcome
        return SelfTest(1.0, outcome, 0.01)

    monkeypatch.setitem(doctor.__globals__, "run_self_test", fails)
    status, text = run()
    assert status == 1 and "Nothing is wrong" not in text
    line = next(x for x in text.splitlines() if x.startswith("problem"))
    assert said in line and line.endswith("; install ardistill and its packages into an empty environment")


def test_nan_does_not_pass():
    assert SelfTest(1.0, 0.001, 0.01).passed and not SelfTest(1.0, float("nan"), 0.01).passed


def problems() -> dict[str, str]:
    return {x.problem: x.remedy for x in doctor("cpu", self_test=False).problems}


def test_a_folder_without_space_or_permission_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    assert problems() == {"runs cannot be written": "name another folder with --out"}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: machine.shutil._ntuple_diskusage(1, 1, 10**9))
    (tmp_path / "runs").unlink()
    assert problems()["runs has 1.0 GB of free space"] == "free space there, or name another folder with --out"


def test_an_old_package_and_an_unused_gpu_are_problems(monkeypatch):
    needs = ["torch>=99", "nowhere>=1", 'peft>=99; extra == "lora"', 'peft>=0.1; extra == "other"']
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setattr(machine, "_driver", lambda: "580.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    found = problems()
    assert found[f"ardistill needs torch>=99, this is torch {torch.__version__}"] == "pip install -U 'torch>=99'"
    assert found["ardistill needs nowhere>=1, this is nowhere (not installed)"] == "pip install -U 'nowhere>=1'"
    assert [x for x in found if "an NVIDIA GPU is there" in x]
    assert not machine.extras()["lora"]["installed"]
