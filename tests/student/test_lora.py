"""Adapters beside the teacher's own weights: off, they are the teacher; merged or as files, they are the student."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import ONE_EACH, TINY, open_gates, save
from torch.utils._python_dispatch import TorchDispatchMode

from ardistill.config import CostConfig, TrainingConfig
from ardistill.core.knots import Knots
from ardistill.planning import cost, describe
from ardistill.student import Student, StudentConfig, sample
from ardistill.student.lora import add_adapters, merge_adapters
from ardistill.student.lora_linear import LoraLinear
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record

pytestmark = pytest.mark.slow

KNOTS = Knots.from_dict(
    {"prediction_type": "epsilon", "timesteps": (999.0, 500.0), "alpha": (0.1, 0.6, 1.0), "sigma": (0.995, 0.8, 0.0)}
)


def storages(module):
    return {tensor.untyped_storage().data_ptr() for tensor in module.parameters()}


def fill(student):
    """Adapters that do something: their B starts at zero."""
    for name, parameter in student.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    open_gates(student)


@pytest.mark.parametrize("name", ONE_EACH)
def test_adapters_off_is_the_teacher_and_merged_is_the_student(name, tmp_path):
    tiny = TINY[name]
    teacher = Teacher(tiny.transformer(), DDIMScheduler())
    config = StudentConfig(KNOTS, 2, lora_rank=2)
    inputs, condition = torch.randn(2, 2, *tiny.latents), tiny.condition(2)
    # HiDream's linear layers get slices of tokens, which the adapters' own product makes whole: other sums.
    same = torch.equal if name != "hidream-wide" else partial(torch.allclose, atol=1e-6)
    plain = Student.from_teacher(teacher, replace(config, lora_rank=0)).eval()
    student = Student.from_teacher(teacher, config).eval()
    assert storages(teacher.transformer) < storages(student) and not storages(teacher.transformer) & storages(plain)
    with torch.no_grad():
        expected = plain(inputs, condition)
        assert same(student(inputs, condition), expected)  # B is zero
        fill(student)
        changed = student(inputs, condition)
        assert not torch.allclose(changed, expected, atol=1e-3)
        student.save_pretrained(tmp_path / "merged")
        student.save_adapters(tmp_path / "adapters")
        assert torch.allclose(
            Student.from_pretrained(tmp_path / "merged", device="cpu")(inputs, condition), changed, atol=1e-4
        )
        assert torch.equal(Student.from_adapters(teacher, tmp_path / "adapters")(inputs, condition), changed)
        for module in student.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(False)
        for parameter in (p for n, p in student.named_parameters() if n.endswith("history_gate")):
            parameter.zero_()
        assert same(student(inputs, condition), expected)
    trained = {n.rpartition(".")[2] for n, p in student.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert trained == {"history_gate"} and not any(p.requires_grad for p in teacher.transformer.parameters())


@pytest.mark.parametrize("output,target", [("solver", "state"), ("direct", "anchored")])
def test_training_leaves_the_teacher_alone_and_resumes(tmp_path, teacher, output, target, dies_at_its_first_checkpoint):
    record(teacher, tmp_path / "data", 12, solver_steps=8, num_steps=(4,), progress=False)
    data, before = TrajectoryDataset(tmp_path / "data", 4), teacher.fingerprint()
    config = data.student_config(history_layers=2, lora_rank=4, output=output, target=target)
    training = TrainingConfig(max_steps=20, batch_size=4, checkpoint_every=10, learning_rate=5e-3, tracker=None)

    def train(name, validate=None):
        student = Student.from_teacher(teacher, config)
        return distill(student, data, tmp_path / name, training, validate=validate, progress=False)

    student = train("whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert teacher.fingerprint() == before
    dies_at_its_first_checkpoint(lambda validate: train("killed", validate))
    resumed = train("killed")
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in student.state_dict().items())
    states, _, condition = data.stacked()
    with torch.no_grad():
        drawn = sample(student, states[:, 0], condition)
        adapted = Student.from_adapters(teacher, tmp_path / "whole" / "adapters")
        assert torch.equal(sample(adapted, states[:, 0], condition), drawn)
        merged = Student.from_pretrained(tmp_path / "whole", device="cpu")
        assert merged.config.lora_rank == 0 and not any(".lora_" in name for name in merged.state_dict())
        assert torch.allclose(sample(merged, states[:, 0], condition), drawn, atol=1e-4)
    with pytest.raises(ValueError, match=r"stores adapters only .* finish its run and use the run folder"):
        Student.from_pretrained(tmp_path / "whole" / "checkpoints" / "step-00000010")
    saved = {name for file in (tmp_path / "whole" / "checkpoints").rglob("*.safetensors") for name in keys(file)}
    assert saved and not any("base_layer" in name for name in saved)


def keys(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.keys()


@pytest.mark.parametrize("output", ["solver", "direct"])
def test_a_folder_of_adapters_is_a_student_where_its_teacher_is(output, tmp_path):
    teacher = Teacher.from_pretrained(save("dit", tmp_path / "teacher"), height=16, width=16, device="cpu")
    facts = {"teacher": str(tmp_path / "teacher"), "fingerprint": teacher.fingerprint()}
    student = Student.from_teacher(teacher, StudentConfig(KNOTS, 2, output=output, lora_rank=2, **facts)).eval()
    fill(student)
    if output == "direct":
        for name in student.family.head:
            torch.nn.init.normal_(student.transformer.get_submodule(name).later_weight, std=0.1)
    student.save_adapters(tmp_path / "adapters")
    merged = Student.from_pretrained(tmp_path / "adapters", "cpu")
    assert merged.config == replace(student.config, lora_rank=0)
    assert not any(".lora_" in name for name in merged.state_dict())
    inputs, condition = torch.randn(2, 2, *teacher.sample_shape), {"class_labels": torch.tensor([0, 1])}
    with torch.no_grad():
        expected = student(inputs, condition)
        assert (merged(inputs, condition) - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(ValueError, match=r"expected adapters of this transformer, which has no blocks\.0\.weight"):
        merge_adapters(merged.transformer, {"blocks.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_diffusers_reads_the_adapters(name, tmp_path):
    tiny = TINY[name]
    teacher = Teacher(tiny.transformer(), DDIMScheduler())
    student = Student.from_teacher(teacher, StudentConfig(KNOTS, 0, lora_rank=2)).eval()
    fill(student)
    student.save_adapters(tmp_path)
    stock = tiny.transformer()
    stock.load_lora_adapter(str(tmp_path), weight_name="pytorch_lora_weights.safetensors", prefix="transformer")
    latents, condition = torch.randn(2, *tiny.latents), tiny.condition(2)
    with torch.no_grad():
        theirs = student.family.call(stock, latents, torch.full((2,), KNOTS.timesteps[0]), condition)
        a, b = student.config.coefficients[0]
        ours = student.step(latents, 0, condition, {})
    assert torch.allclose(a * latents + b * theirs[:, : latents.shape[1]], ours, atol=1e-5)


class Operations(TorchDispatchMode):
    """Counts what an accelerator would launch: every operation that is not a mere view."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or func is torch.ops.aten._unsafe_view.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast,most", [(False, (3, 6)), (True, (7, 8))])
def test_an_adapter_layer_is_peft_in_fewer_operations(autocast, most):
    """To the bit in float32; under autocast the sum is rounded once where PEFT rounds twice."""
    found, counts = [], []
    for kind in (Linear, LoraLinear):
        torch.manual_seed(0)
        net = torch.nn.Module()
        net.blocks = torch.nn.ModuleList([torch.nn.Linear(24, 40)])
        add_adapters(net, [*net.parameters()], ["blocks"], 4)
        assert type(net.blocks[0]) is LoraLinear
        net.blocks[0].__class__ = kind
        torch.nn.init.normal_(net.blocks[0].lora_B["default"].weight)
        x = torch.randn(2, 5, 24, dtype=torch.bfloat16 if autocast else torch.float32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Operations() as forward:
            y = net.blocks[0](x)
        gradient = torch.randn_like(y)
        with Operations() as backward:
            y.backward(gradient)
        found.append([y.detach(), x.grad, *(p.grad for p in net.parameters() if p.requires_grad)])
        counts.append((forward.count, backward.count))
    assert counts[1] == most and sum(counts[0]) >= sum(most) + 3, counts
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, rtol=0.02, atol=0.02) if autocast else torch.equal(theirs, ours)


def test_the_plan_counts_shared_weights_once(tmp_path):
    TINY["dit"].transformer().save_config(tmp_path)
    options = CostConfig(str(tmp_path / "config.json"), history_layers=2, batch_size=2, lora_rank=1)
    ours, full = cost(options), cost(replace(options, lora_rank=0))
    assert full.trained_parameters == full.parameters and ours.trained_parameters < ours.parameters / 5
    assert ours.memory["optimizer"] == 8 * ours.trained_parameters and ours.memory["weights"] == 4 * ours.parameters
    assert ours.memory["total"] < full.memory["total"] and "which are shared" in describe(ours, options)


def test_bad_input_is_named(tmp_path, teacher):
    with pytest.raises(ValueError, match="expected a lora_rank of 1 or more"):
        StudentConfig(KNOTS, 0, lora_rank=-1)
    with pytest.raises(ValueError, match="found none; distil with lora_rank"):
        Student.from_adapters(teacher, tmp_path)
    student = Student.from_teacher(teacher, StudentConfig(KNOTS, 0, lora_rank=1, teacher="other", fingerprint="0" * 64))
    student.save_adapters(tmp_path)
    with pytest.raises(ValueError, match=r"adapters in .*: expected the teacher other"):
        Student.from_adapters(teacher, tmp_path)
    plain = Student.from_teacher(teacher, StudentConfig(KNOTS, 1, lora_rank=1))
    plain.save_adapters(tmp_path / "more")
    adapters = tmp_path / "more" / "pytorch_lora_weights.safetensors"
    whole = adapters.read_bytes()
    adapters.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="is not what student"):
        Student.from_adapters(teacher, tmp_path / "more")
    student.save_pretrained(tmp_path / "merged")
    weights = tmp_path / "merged" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is missing, cut or damaged"):
        Student.from_pretrained(tmp_path / "merged")
