"""Options that save memory change no number: EMA on the host, moments in 8 bits, activations on the host."""

import importlib
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from safetensors.torch import load_file
from tiny import open_gates
from tiny_students import batch, make

from ardistill.config import TrainingConfig
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.training.averages import Averages
from ardistill.training.launch import settled
from ardistill.training.offload import offloaded
from ardistill.training.state import TrainingState
from ardistill.trajectories import TrajectoryDataset, record

CONFIG = TrainingConfig(max_steps=2, batch_size=2, checkpoint_every=1, tracker=None, learning_rate=1e-3)


@pytest.fixture(scope="module")
def wide():
    """A tiny DiT with weights of more than 4,096 values, whose moments torchao keeps in 8 bits."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "sample_size": 8}
    model = DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, num_embeds_ada_norm=5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Teacher(model, DDIMScheduler())


@pytest.fixture(scope="module")
def data(wide, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "data"
    record(wide, folder, 8, solver_steps=8, num_steps=(4,), progress=False)
    return TrajectoryDataset(folder, 4)


@pytest.fixture
def train(wide, data, tmp_path):
    def run(name, validate=None, lora_rank=0, **options):
        student = Student.from_teacher(wide, data.student_config(history_layers=2, lora_rank=lora_rank))
        open_gates(student)
        config = replace(CONFIG, **options)
        return distill(student, data, tmp_path / name, config, validate=validate, progress=False).state_dict()

    return run


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def checkpoint(folder, step=2):
    found = {}
    for file in (folder / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_averages_on_the_host_and_recomputed_blocks_are_the_same_run(train, tmp_path):
    plain = train("plain")
    spared = train("spared", ema_device="cpu", gradient_checkpointing=True, checkpoint_stride=2)
    assert same(spared, plain) and same(checkpoint(tmp_path / "spared"), checkpoint(tmp_path / "plain"))
    train("plain", ema_device="cpu")  # a finished run may be opened with other such options


def test_8_bit_moments_resume_to_the_bit(train, tmp_path, dies_at_its_first_checkpoint):
    options = {"optimizer": "adamw8bit", "lr_scheduler": "cosine", "weight_decay": 0.01}
    whole = train("whole", **options)
    dies_at_its_first_checkpoint(lambda validate: train("killed", validate, **options))
    assert same(train("killed", **options), whole)
    assert same(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"))
    logs, states = (
        [(tmp_path / run / file).read_text() for run in ("whole", "killed")]
        for file in ("metrics.jsonl", "checkpoints/step-00000002/state.json")
    )
    assert logs[0] == logs[1] and states[0] == states[1]
    held = checkpoint(tmp_path / "whole")
    large = [x for name, x in held.items() if name.startswith("student.") and x.numel() % 256 == 0 and x.numel() > 4095]
    codes = [x for name, x in held.items() if name.endswith(".codes")]
    assert {x.dtype for x in codes} == {torch.uint8} and len(codes) == 2 * len(large) > 0
    scales = sum(x.numel() for name, x in held.items() if name.endswith(".scale"))
    assert 256 * scales == sum(x.numel() for x in codes) == 2 * sum(x.numel() for x in large)


def test_8_bit_moments_stay_near_those_in_32(train):
    plain, coarse = train("plain"), train("coarse", optimizer="adamw8bit")
    assert not same(plain, coarse)
    assert (
        max((x - coarse[name]).abs().max() for name, x in plain.items()) < 2 * CONFIG.learning_rate * CONFIG.gate_rate
    )


def test_a_checkpoint_of_adapters_holds_what_is_trained_alone(train, tmp_path):
    train("run", lora_rank=2, optimizer="adamw8bit", ema_device="cpu")
    held = checkpoint(tmp_path / "run")
    weights = {name: x for name, x in held.items() if name.startswith("student.")}
    trained = [name for name in weights if ".lora_" in name or name.endswith("history_gate")]
    assert len(trained) == sum(name.startswith("ema.shadow_params.") for name in held) > 0
    assert sum(weights[name].numel() for name in weights if name not in trained) <= 16 * 64  # buffers: positions


def test_what_is_swapped_comes_back(wide, data):
    student = Student.from_teacher(wide, data.student_config(history_layers=1))
    state = TrainingState(student, replace(CONFIG, ema_device="cpu"), None)
    for average in state.ema.shadow_params:
        average.add_(1)
    before, averages = ([x.detach().clone() for x in y] for y in (state.parameters, state.ema.shadow_params))
    with state.averaged():
        assert not student.training
        assert all(torch.equal(x, y) for x, y in zip(state.parameters, averages, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(state.parameters, before, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(state.ema.shadow_params, averages, strict=True))


@pytest.mark.parametrize("foreach", [False, True])
def test_averages_on_the_host_take_the_same_steps(foreach):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5)) for _ in range(3)]
    here, host = (Averages(weights, 0.9, foreach, on_host) for on_host in (False, True))
    for _ in range(5):
        for weight in weights:
            weight.data.add_(torch.randn(5))
        here.step(weights)
        host.step(weights)
    ours, theirs = host.state_dict(), here.state_dict()
    assert all(torch.equal(x, y) for x, y in zip(ours.pop("shadow_params"), theirs.pop("shadow_params"), strict=True))
    assert ours == theirs and ours["optimization_step"] == 5


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_offloaded_activations_give_equal_gradients_and_leave_weights_alone(name, monkeypatch):
    module, inputs = importlib.import_module("ardistill.training.offload"), batch(name)
    copied, kept = {}, module.save_on_cpu.__init__

    def init(self, pin_memory):
        kept(self, pin_memory)
        copy, back = self.pack_hook, self.unpack_hook

        def pack(tensor):
            held = copied.setdefault(way, {})
            held[len(held)] = (tensor.numel(), tensor.untyped_storage().data_ptr())
            return copy(tensor.clone())  # where it was is free

        self.pack_hook, self.unpack_hook = pack, back

    monkeypatch.setattr(module.save_on_cpu, "__init__", init)
    found = {}
    for way, stride in (("plain", 0), ("offloaded", 0), ("recomputed", 1)):
        student = make(name).train()
        student.transformer.requires_grad_(True)
        next(student.transformer.children()).requires_grad_(False)  # a frozen base
        weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
        if stride:
            student.enable_gradient_checkpointing(stride)
        if way == "plain":
            loss = student(*inputs).square().mean()
        else:
            with offloaded():
                loss = student(*inputs).square().mean()
        loss.backward()
        found[way] = {k: p.grad for k, p in student.named_parameters() if p.grad is not None}
        assert not weights & {place for _, place in copied.get(way, {}).values()}
    assert same(found["offloaded"], found["plain"]) and same(found["recomputed"], found["plain"])
    sizes = {way: sum(size for size, _ in held.values()) for way, held in copied.items()}
    assert 0 < sizes["recomputed"] < sizes["offloaded"] / 3, sizes


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="offload_activations needs a device with memory of its own"):
        settled(replace(CONFIG, offload_activations=True), tmp_path, torch.device("cpu"))
    for options, message in (
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; known: adamw, adamw8bit"),
        ({"ema_device": "cuda"}, "unknown ema_device 'cuda'; known: auto, cpu"),
        ({"checkpoint_stride": 2}, "checkpoint_stride needs gradient_checkpointing"),
        ({"checkpoint_stride": 0}, "expected checkpoint_stride of 1 or more"),
        ({"shard": True, "optimizer": "adamw8bit"}, "leave optimizer adamw8bit and ema_device cpu out"),
        ({"shard": True, "ema_device": "cpu"}, "leave optimizer adamw8bit and ema_device cpu out"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **options)


def test_an_optimiser_that_is_not_installed_is_refused_before_the_run_begins(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match=r"optimizer adamw8bit needs torchao: pip install 'ardistill\[quantised\]'"):
        train("run", optimizer="adamw8bit")
    assert not (tmp_path / "run").exists()
