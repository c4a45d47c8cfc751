"""benchmarks/gpu.py runs whole at its small size on a CPU, and loses nothing when a part goes wrong."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_workers
import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu, performance = script("gpu"), script("performance")

pytestmark = pytest.mark.slow

OPTIONS = {"size": "tiny", "device": None, "reference": None}


def test_every_part_runs_at_its_small_size_and_gets_a_column(tmp_path):
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--device", "cpu", "--minutes", "30"]
    done = subprocess.run([*command, "--json", str(tmp_path / "gpu.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["parts"]) == set(gpu.LIMITS) and found["environment"]["device"] == "cpu"
    arms = {f"{part}, {arm}": x for part, content in found["parts"].items() for arm, x in content["arms"].items()}
    for arm, figures in arms.items():
        assert {"ms", "seconds", "difference", "not_measured"} & set(figures), arm
        assert ("share_of_peak" in figures) == ({"flops", "precision"} <= set(figures)), arm
    for arm in (
        "sample 1, N=2 gated, eager, bf16",
        "sample many, N=2 gated M2, eager, bf16",
        "pass bf16, N=2 gated M2, eager",
        "step, step, eager",
        "step, step, adapters, eager",
        "record, by default, whole call",
        "record, by default, steady",
        "teacher, bf16",
        "sd35, training pass, all weights",
    ):
        assert arms[arm]["ms"] > 0, arm
    assert arms["quickstart, export and draw"]["images"] == 2
    shutil.copytree(performance.RESULTS, tmp_path / "results")
    shutil.copy(tmp_path / "gpu.json", tmp_path / "results" / "gpu-cpu.json")
    page = performance.page(tmp_path / "results")
    assert (
        "| goal | H100 80GB HBM3, before | cpu | H100 80GB HBM3 |" in page
        and "| N=2 gated M2, eager, bf16 |  | " in page
    )


def test_a_part_that_goes_wrong_is_noted_and_the_next_one_goes_on(tmp_path):
    results = gpu.Results(str(tmp_path / "gpu.json"), "tiny")
    limits = {"bf16": 60.0, "hangs": 1.0, "dies": 60.0, "fails": 60.0, "last": 60.0}
    gpu.supervise(gpu_workers.work, limits, OPTIONS, results, total=300.0)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: x.get("error") for name, x in parts.items()} == {
        "bf16": None,
        "hangs": "stopped after 1 s, of 1 at most",
        "dies": "its process ended with status 7",
        "fails": "ValueError: no",
        "last": None,
    }
    assert all(x["arms"]["first"]["ms"] == 2.0 for x in parts.values())  # what was found before stays


def test_no_part_begins_after_the_time_of_all(tmp_path):
    results = gpu.Results(str(tmp_path / "gpu.json"), "tiny")
    gpu.supervise(gpu_workers.work, {"hangs": 60.0, "last": 60.0}, OPTIONS, results, total=3.0)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert "stopped after" in parts["hangs"]["error"] and "not begun" in parts["last"]["error"]


def test_no_arm_begins_after_the_time_of_its_part(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from gpu_parts.bench import Bench

    found = {}
    bench = Bench("tiny", torch.device("cpu"), None, found.__setitem__)
    for bench.until, name in ((float("inf"), "first"), (0.0, "second")):
        bench.arm(name, lambda: {"ms": 1.0})
    assert found == {"first": {"ms": 1.0}, "second": {"not_measured": "the time of this part was over"}}


def test_the_file_is_named_after_the_card_and_keeps_the_other_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    for part in ("machine", "last"):
        results = gpu.Results(None, "xl")
        gpu.supervise(gpu_workers.work, {part: 60.0}, OPTIONS, results, total=300.0)
    found = json.loads((tmp_path / "gpu-test-1gb.json").read_text())
    assert set(found["parts"]) == {"machine", "last"}
    results = gpu.Results(None, "tiny")
    gpu.supervise(gpu_workers.work, {"last": 60.0}, OPTIONS, results, total=300.0)
    assert set(json.loads((tmp_path / "gpu-test-1gb.json").read_text())["parts"]) == {"last"}


def test_shares_are_of_the_machines_own_peak(tmp_path):
    results = gpu.Results(str(tmp_path / "gpu.json"), "xl")
    results.set_environment({"card": "NVIDIA Test"})
    results.start("machine")
    results.add("machine", "bf16", {"ms": 1.0, "flops": 1e12, "tflops": 1000.0})
    results.start("step")
    results.add("step", "eager", {"ms": 10.0, "flops": 2e12, "precision": "bf16"})
    results.add("step", "other", {"ms": 10.0, "flops": 2e12, "precision": "tf32"})
    arms = results.found["parts"]["step"]["arms"]
    assert arms["eager"]["share_of_peak"] == pytest.approx(0.2) and "share_of_peak" not in arms["other"]


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "machine, nonsense"])
    assert "unknown parts ['nonsense']; known: machine, pass bf16" in capsys.readouterr().err
