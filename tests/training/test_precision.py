"""The precision that a device gets where none is named, and how runs and recordings keep theirs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from pretend_device import DEVICE, PretendDevice
from tiny import open_gates

from ardistill.config import TrainingConfig
from ardistill.devices import precision, resolve_precision, tf32
from ardistill.student import Student, sample
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record

SOLVED = {"solver_steps": 4, "num_steps": (2,), "shard_size": 4, "progress": False}
CONFIG = TrainingConfig(max_steps=2, batch_size=4, checkpoint_every=2, tracker=None, learning_rate=1e-3)
MATMUL = torch.backends.cuda.matmul


def test_auto_is_float32_where_no_gpu_computes_in_bfloat16():
    assert resolve_precision("auto", "cpu") == "no"
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    assert resolve_precision("auto", "cuda") == ("bf16" if has_bf16 else "no")
    with PretendDevice():
        assert resolve_precision("auto", "pretend") == "no"


@pytest.mark.parametrize("name", ["no", "bf16"])
def test_a_named_precision_is_kept(name):
    assert resolve_precision(name, "cpu") == name


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown mixed_precision 'fp16'; known: auto, no, bf16"):
        resolve_precision("fp16", "cpu")


def _computed_in(name, weights=torch.float32, outer=None):
    linear, x = torch.nn.Linear(2, 2).to(weights), torch.ones(1, 2, dtype=weights)
    with torch.autocast("cpu", outer or torch.bfloat16, enabled=outer is not None), precision(name, linear):
        return linear(x).dtype


def test_only_auto_leaves_autocast_as_it_finds_it():
    half, full = torch.bfloat16, torch.float32
    assert [_computed_in(name) for name in ("auto", "no", "bf16")] == [full, full, half]
    assert [_computed_in(name, outer=half) for name in ("auto", "no", "bf16")] == [half, full, half]
    assert _computed_in("auto", weights=torch.float16) == torch.float16


def test_tf32_is_allowed_within_a_block_on_a_gpu_unless_the_user_chose():
    with tf32("cpu"):
        assert MATMUL.fp32_precision == "none"
    with tf32("cuda"), tf32("cuda:0"):
        assert MATMUL.fp32_precision == "tf32" and torch.get_float32_matmul_precision() == "high"
    assert MATMUL.fp32_precision == "none" and torch.get_float32_matmul_precision() == "highest"
    try:
        MATMUL.fp32_precision = "ieee"
        with tf32("cuda"):
            assert MATMUL.fp32_precision == "ieee"
    finally:
        MATMUL.fp32_precision = "none"


def test_a_recording_goes_on_in_its_own_precision(teacher, tmp_path):
    assert record(teacher, tmp_path / "cpu", 4, **SOLVED).mixed_precision == "no"
    whole = record(teacher, tmp_path / "whole", 8, mixed_precision="bf16", **SOLVED)
    record(teacher, tmp_path / "begun", 4, mixed_precision="bf16", **SOLVED)
    assert record(teacher, tmp_path / "begun", 8, **SOLVED) == whole
    for shard in ("shard-00000.arrow", "shard-00001.arrow"):
        assert (tmp_path / "begun" / shard).read_bytes() == (tmp_path / "whole" / shard).read_bytes()
    with pytest.raises(ValueError, match="mixed_precision is 'bf16' there, 'no' asked for"):
        record(teacher, tmp_path / "begun", 8, mixed_precision="no", **SOLVED)


@pytest.fixture
def train(teacher, tmp_path):
    record(teacher, tmp_path / "data", 8, **SOLVED)
    data = TrajectoryDataset(tmp_path / "data", 2)

    def run(name, device="cpu", **options):
        student = Student.from_teacher(teacher, data.student_config(history_layers=2))
        open_gates(student)
        config = replace(CONFIG, **options)
        trained = distill(student.to(device), data, tmp_path / name, config, progress=False)
        return torch.cat([x.detach().cpu().flatten() for x in trained.parameters()])

    return run


def _facts(folder):
    stored = json.loads((folder / "config.json").read_text())["training"]["mixed_precision"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["tf32"] is False
    return stored, environment["mixed_precision"]


def test_a_run_keeps_the_precision_that_it_began_with(train, tmp_path):
    plain, half = train("plain"), train("half", mixed_precision="bf16", max_steps=4)
    assert torch.equal(plain, train("no", mixed_precision="no"))
    assert not torch.equal(half, train("plain", max_steps=4))
    assert _facts(tmp_path / "plain") == ("no", "no") and _facts(tmp_path / "half") == ("bf16", "bf16")
    train("begun", mixed_precision="bf16")
    assert torch.equal(half, train("begun", max_steps=4))  # auto alone would be float32 here
    with pytest.raises(ValueError, match="mixed_precision is 'bf16' there, 'no' asked for"):
        train("begun", max_steps=4, mixed_precision="no")


def test_a_run_that_moves_to_another_device_goes_on(train, tmp_path):
    with PretendDevice():
        train("moved", DEVICE)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert _facts(tmp_path / "moved") == ("no", "no")
    assert torch.allclose(train("whole", max_steps=4), train("moved", max_steps=4), atol=1e-3)


def test_a_run_of_a_time_without_auto_goes_on(train, tmp_path):
    whole = train("whole", max_steps=4)
    train("begun")
    path = tmp_path / "begun" / "config.json"
    settings = json.loads(path.read_text())
    del settings["training"]["mixed_precision"], settings["seal"]
    path.write_text(json.dumps(settings))
    assert torch.equal(whole, train("begun", max_steps=4))


def test_samples_are_drawn_in_the_precision_that_is_named(teacher, train, tmp_path):
    train("run")
    student, noise = Student.from_pretrained(tmp_path / "run", "cpu"), torch.randn(2, *teacher.sample_shape)
    condition = {"class_labels": torch.arange(2)}
    auto, exact, half = (sample(student, noise, condition, name) for name in ("auto", "no", "bf16"))
    assert torch.equal(auto, exact)
    assert 0 < (half - exact).abs().mean() < 0.05 * exact.abs().mean()
    with pytest.raises(ValueError, match="unknown mixed_precision 'fp16'"):
        sample(student, noise, condition, "fp16")
