"""Killed at any moment and started again by the same command, a training ends bit-equal to one never killed."""

import random
import signal
import time

import pytest
from diffusers import DDIMScheduler
from processes import leavings, run, start, train
from tiny import TINY

from ardistill.teacher import Teacher
from ardistill.trajectories import record

pytestmark = pytest.mark.slow

STEPS = 12


def passes(losses):
    return losses.read_text().count("\n") if losses.exists() else 0


@pytest.mark.parametrize("count,kills,cuda", [(1, 1, False), (2, 2, False), (1, 2, True)])
def test_killed_and_started_again_is_bit_equal(tmp_path, count, kills, cuda):
    """As on a CPU, and as on CUDA: checkpoints by a thread, norms read late, another optimiser."""
    teacher = Teacher(TINY["dit"].transformer(), DDIMScheduler())
    record(teacher, tmp_path / "data", 20, solver_steps=8, num_steps=(4,), shard_size=8, progress=False)
    training = {"max_steps": STEPS, "checkpoint_every": 2, "lr_scheduler": "cosine"}
    run(
        count,
        tmp_path / "whole.log",
        train,
        "dit",
        str(tmp_path / "data"),
        str(tmp_path / "whole"),
        training,
        None,
        cuda,
    )
    command = (train, "dit", str(tmp_path / "data"), str(tmp_path / "killed"), training, None, cuda)
    moments, log = random.Random(count + 2 * cuda), tmp_path / "killed.losses-0"
    for _ in range(kills):
        before = passes(log)
        some = moments.randint(3, 5)  # never so many that it comes to its end
        processes = start(count, tmp_path / "killed.log", *command)
        limit = time.time() + 300
        while passes(log) < before + some and time.time() < limit:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.03)  # amid a pass, or a checkpoint
        for process in processes:
            process.kill()
            process.join()
        assert processes[0].exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "student").exists()
    run(count, tmp_path / "killed.log", *command)
    whole, killed = leavings(tmp_path / "whole"), leavings(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    last = f"checkpoints/step-{STEPS:08d}"
    assert {f"{last}/state.json", f"{last}/student.proj_out_2.bias", f"{last}/ema.shadow_params.proj_out_2.bias"} <= {
        name.replace("transformer.", "") for name in whole
    }
    assert any(name.endswith("exp_avg_sq") for name in whole) and "metrics.jsonl" in whole
    assert [name for name in whole if whole[name] != killed[name]] == []
