"""Two processes over gloo, weights on each (DDP) or divided over them (FSDP2): the same training as in one process."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from processes import compare_families, run, train, train_all
from safetensors.torch import load_file
from tiny_families import TINY

from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training import _check_launch
from ardistill.trajectories import record

STEPS = 20
LONG = {"max_steps": STEPS, "checkpoint_every": 10}
SHORT = {"max_steps": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True, "mixed_precision": "bf16"}


def losses(run, passes=1):
    """Of every pass, those of a step side by side, (steps, passes): over processes, or one after the other."""
    found = [[float(x) for x in file.read_text().split()] for file in sorted(run.parent.glob(f"{run.name}.losses-*"))]
    return torch.tensor(found).T.reshape(-1, passes * len(found))


def weights(folder):
    return load_file(folder / "student" / "transformer" / "diffusion_pytorch_model.safetensors")


def same(ours, theirs):
    """Weights after as many steps; where a gradient is rounding alone (a key's bias), AdamW blows that up."""
    assert ours.keys() == theirs.keys()
    return all(torch.allclose(x, theirs[name], atol=2e-5) or name.endswith("to_k.bias") for name, x in ours.items())


def test_two_processes_train_as_one(tmp_path):
    teacher = Teacher(TINY["dit"].transformer(), DDIMScheduler())
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(4,), shard_size=8, progress=False)
    train("dit", str(tmp_path / "data"), str(tmp_path / "one"), LONG | {"gradient_accumulation_steps": 2})
    jobs = [("ddp", LONG), ("shard", LONG | {"shard": True}), ("ddp-then-shard", LONG | {"shard": True})]
    direct = {"target": "anchored", "output": "direct"}
    jobs += [(f"short-{divided}", SHORT | {"shard": divided}, direct) for divided in (False, True)]
    jobs += [(f"adapters-{divided}", SHORT | {"shard": divided}, {"lora_rank": 2}) for divided in (False, True)]
    run(2, tmp_path / "log", train_all, str(tmp_path), jobs)
    one = losses(tmp_path / "one", passes=2)
    assert one.shape == (STEPS, 2) and one[-1].mean() < one[0].mean()
    for name, first in (("ddp", 0), ("shard", 0), ("ddp-then-shard", 10)):
        assert torch.allclose(losses(tmp_path / name), one[first:], rtol=0, atol=1e-5), name
        assert same(weights(tmp_path / name), weights(tmp_path / "one")), name
    for kind in ("short", "adapters"):
        whole, divided = (tmp_path / f"{kind}-{divided}" for divided in (False, True))
        assert torch.allclose(losses(divided), losses(whole), rtol=1e-4)
        assert same(weights(divided), weights(whole))
    name = "pytorch_lora_weights.safetensors"
    assert same(*(load_file(tmp_path / f"adapters-{divided}" / "adapters" / name) for divided in (True, False)))
    assert len(list((tmp_path / "shard" / "checkpoints" / "step-00000020").glob("*.safetensors"))) == 2
    Student.from_pretrained(tmp_path / "shard")


def test_every_family_can_be_divided(tmp_path, teacher):
    (tmp_path / "knots.json").write_text(json.dumps(teacher.knots(4).__dict__))
    run(2, tmp_path / "log", compare_families, str(tmp_path))


class Launched:
    num_processes = 2


def test_what_does_not_go_together_is_refused(monkeypatch, teacher):
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        with monkeypatch.context() as patched, pytest.raises(ValueError, match=f"asks for {name}: launch without it"):
            patched.setenv(variable, "true")
            _check_launch(Launched, TrainingConfig(), None)
    with pytest.raises(ValueError, match="1 processes were launched, accelerate sees 2: on a CPU use"):
        _check_launch(Launched, TrainingConfig(), None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="finetune without shard"):
        _check_launch(Launched, TrainingConfig(shard=True), AdversarialConfig())
    monkeypatch.delenv("WORLD_SIZE")
    Launched.num_processes = 1
    with pytest.raises(ValueError, match="this is one: use accelerate launch"):
        _check_launch(Launched, TrainingConfig(shard=True), None)
