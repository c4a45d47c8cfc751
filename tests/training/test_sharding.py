"""Two processes over gloo, with weights on each (DDP) or divided over both (FSDP2), train like one process."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from processes import (
    compare_families,
    compare_parts,
    distill_in_parts,
    finetune_all,
    leavings,
    run,
    train,
    train_all,
)
from safetensors.torch import load_file
from tiny import TINY

from ardistill.config import TrainingConfig
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training import distill, reads_in_parts
from ardistill.training.launch import check_launch
from ardistill.training.real_images import save_real
from ardistill.trajectories import TrajectoryDataset, record

pytestmark = pytest.mark.slow

STEPS = 10
LONG = {"max_steps": STEPS, "checkpoint_every": 5}
SHORT = {"max_steps": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True, "mixed_precision": "bf16"}


def losses(run, passes=1):
    """Losses of all passes, (steps, passes); the passes of a step ran on several processes, or one after the other."""
    found = [[float(x) for x in file.read_text().split()] for file in sorted(run.parent.glob(f"{run.name}.losses-*"))]
    return torch.tensor(found).T.reshape(-1, passes * len(found))


def weights(folder):
    return load_file(folder / "student" / "transformer" / "diffusion_pytorch_model.safetensors")


def same(ours, theirs):
    """Whether weights are equal, but for a key's bias: its gradient is only rounding, which AdamW amplifies."""
    assert ours.keys() == theirs.keys()
    return all(torch.allclose(x, theirs[name], atol=2e-5) or name.endswith("to_k.bias") for name, x in ours.items())


def test_two_processes_train_as_one(tmp_path):
    teacher = Teacher(TINY["dit"].transformer(), DDIMScheduler())
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(4,), shard_size=8, progress=False)
    train("dit", str(tmp_path / "data"), str(tmp_path / "one"), LONG | {"gradient_accumulation_steps": 2})
    jobs = [("ddp", LONG), ("shard", LONG | {"shard": True}), ("ddp-then-shard", LONG | {"shard": True})]
    jobs += [("shard-fused", LONG | {"shard": True}, None, True)]  # the optimiser of CUDA
    direct = {"target": "anchored", "output": "direct"}
    jobs += [(f"short-{divided}", SHORT | {"shard": divided}, direct) for divided in (False, True)]
    jobs += [(f"adapters-{divided}", SHORT | {"shard": divided}, {"lora_rank": 2}) for divided in (False, True)]
    run(2, tmp_path / "log", train_all, str(tmp_path), jobs)
    one = losses(tmp_path / "one", passes=2)
    assert one.shape == (STEPS, 2) and one[-1].mean() < one[0].mean()
    for name, first in (("ddp", 0), ("shard", 0), ("shard-fused", 0), ("ddp-then-shard", STEPS // 2)):
        assert torch.allclose(losses(tmp_path / name), one[first:], rtol=0, atol=1e-5), name
        assert same(weights(tmp_path / name), weights(tmp_path / "one")), name
    for kind in ("short", "adapters"):
        whole, divided = (tmp_path / f"{kind}-{divided}" for divided in (False, True))
        assert torch.allclose(losses(divided), losses(whole), rtol=1e-4)
        assert same(weights(divided), weights(whole))
    name = "pytorch_lora_weights.safetensors"
    assert same(*(load_file(tmp_path / f"adapters-{divided}" / "adapters" / name) for divided in (True, False)))
    assert len(list((tmp_path / "shard" / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"))) == 2
    ended, last = (
        Student.from_pretrained(tmp_path / "shard" / x, device="cpu") for x in ("", f"checkpoints/step-{STEPS:08d}")
    )
    assert all(torch.equal(x, last.state_dict()[name]) for name, x in ended.state_dict().items())


def test_a_discriminator_meets_a_divided_student_as_a_whole_one(tmp_path):
    """Compared with DDP, because one process trains the discriminator once in each of its accumulated passes."""
    teacher = Teacher(TINY["dit"].transformer(), DDIMScheduler())
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(4,), shard_size=8, progress=False)
    latents = torch.randn(12, *TINY["dit"].latents, generator=torch.Generator().manual_seed(5))
    save_real(tmp_path / "real.safetensors", latents, {"class_labels": torch.arange(12) % 5})
    steps = {"max_steps": 6, "checkpoint_every": 3, "gradient_accumulation_steps": 2, "inputs": "student"}
    divided = steps | {"shard": True}
    jobs = {"ddp": steps, "shard": divided, "ddp-then-shard": divided}
    mixed = {
        "max_steps": 4,
        "inputs": "mixed",
        "student_share": 0.5,
        "shard": True,
    }  # the processes' draws differ
    run(2, tmp_path / "log", finetune_all, str(tmp_path), [*jobs.items(), ("mixed", mixed)])
    whole, *others = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in jobs)
    assert whole["g_loss"] != 0 and whole["g_weight"] > 0
    for name, log in zip(("shard", "ddp-then-shard"), others, strict=True):
        assert all(log[key] == pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in whole.items()), name
        assert same(weights(tmp_path / name), weights(tmp_path / "ddp")), name
        assert same(*(load_file(tmp_path / f"{run}-heads.safetensors") for run in (name, "ddp"))), name


def test_every_family_can_be_divided(tmp_path, teacher):
    (tmp_path / "knots.json").write_text(json.dumps(teacher.knots(4).__dict__))
    run(2, tmp_path / "log", compare_families, str(tmp_path))


def test_each_process_reads_its_part_alone(tmp_path, teacher):
    (tmp_path / "knots.json").write_text(json.dumps(teacher.knots(4).__dict__))
    run(2, tmp_path / "log", compare_parts, str(tmp_path))


def test_a_teacher_read_in_parts_trains_as_a_whole_one(tmp_path):
    made = DiTTransformer2DModel(**TINY["dit"].options | {"in_channels": 3, "out_channels": 6})  # draws pictures
    made.save_pretrained(tmp_path / "teacher" / "transformer")
    DDIMScheduler(clip_sample=False).save_pretrained(tmp_path / "teacher" / "scheduler")
    teacher = Teacher.from_pretrained(tmp_path / "teacher", device="cpu")
    record(teacher, tmp_path / "data", 4, solver_steps=4, num_steps=(4,), shard_size=4, progress=False)
    run(2, tmp_path / "log", distill_in_parts, str(tmp_path))
    parts, whole, resumed = (leavings(tmp_path / name) for name in ("parts", "whole", "resumed"))
    kept = [name for name in parts if name.startswith(("student/", "adapters/", "checkpoints/step-00000002/"))]
    assert len(kept) > 50 and all(parts[name] == whole[name] == resumed[name] for name in kept)
    assert (tmp_path / "parts" / "samples" / "step-00000002.png").is_file()
    student = Student.from_pretrained(tmp_path / "parts", "cpu")
    assert all(x.dtype == torch.float32 for x in student.parameters())


def test_quantised_weights_are_not_divided(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"bfloat16 to divide over processes \(shard\), got int8; choose --weights"):
        reads_in_parts(TrainingConfig(shard=True), "int8")


def test_a_teacher_in_its_files_is_refused_by_a_single_process(tmp_path):
    teacher = Teacher.from_pretrained("zoo/fashion", device="cpu", in_parts=True)
    whole = Teacher.from_pretrained("zoo/fashion", device="cpu")
    assert teacher.fingerprint() == whole.fingerprint()
    record(whole, tmp_path / "data", 4, solver_steps=4, num_steps=(4,), shard_size=4, progress=False)
    data = TrajectoryDataset(tmp_path / "data", 4)
    student = Student.from_teacher(teacher, data.student_config(1))
    with pytest.raises(ValueError, match=r"is in its teacher's files \(in_parts\); train it with shard"):
        distill(student, data, tmp_path / "run", TrainingConfig(max_steps=1, tracker=None))


class Launched:
    num_processes = 2


def test_what_does_not_go_together_is_refused(monkeypatch, teacher):
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        with monkeypatch.context() as patched, pytest.raises(ValueError, match=f"asks for {name}: launch without it"):
            patched.setenv(variable, "true")
            check_launch(Launched, TrainingConfig())
    with pytest.raises(ValueError, match="1 processes were launched, accelerate sees 2: on a CPU set ACCEL"):
        check_launch(Launched, TrainingConfig())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("WORLD_SIZE")
    Launched.num_processes = 1
    with pytest.raises(ValueError, match="this is one: use accelerate launch"):
        check_launch(Launched, TrainingConfig(shard=True))
