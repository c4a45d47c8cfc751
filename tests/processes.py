"""Real processes for the tests: alone, or several that find each other over gloo, as torchrun starts them.

A server process imports torch once and forks them, so that each starts in a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ardistill.training", "ardistill.trajectories", "tiny_families"])


def _enter(rank: int, count: int, port: int, log: str, function: Callable[..., Any], args: tuple) -> None:
    import torch

    if count > 1:
        facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in facts.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    try:
        function(*args)
    except BaseException:
        with open(log, "a") as file:
            file.write(traceback.format_exc())
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start(count: int, log: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Start ``function(*args)`` in so many processes; what goes wrong in them is in ``log``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _CONTEXT.Process(target=_enter, args=(rank, count, port, str(log), function, args), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def run(count: int, log: Path, function: Callable[..., Any], *args: Any) -> None:
    """Same, and wait until all have ended well."""
    processes = start(count, log, function, *args)
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count, log.read_text() if log.exists() else codes


def train(name: str, data: str, run: str, training: dict[str, Any], student: dict[str, Any] | None = None) -> None:
    """Distil the tiny teacher ``name``; in each of the processes."""
    from diffusers import DDIMScheduler
    from tiny_families import TINY, open_gates

    from ardistill.config import TrainingConfig
    from ardistill.student import Student, StudentConfig
    from ardistill.teacher import Teacher
    from ardistill.training import distill
    from ardistill.trajectories import TrajectoryDataset

    teacher = Teacher(TINY[name].transformer(), DDIMScheduler())
    recorded = TrajectoryDataset(data, 4)
    made = Student.from_teacher(teacher, StudentConfig(recorded.knots, 2, **(student or {})))
    open_gates(made)
    options = {"batch_size": 4, "tracker": None, "learning_rate": 1e-3, "ema_decay": 0.5}
    distill(made, recorded, run, TrainingConfig(**(options | training)), progress=False)
