"""Real processes for the tests: one alone, or several connected over gloo, as torchrun starts them.

A server process imports torch once and forks them, so that each starts quickly.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["ardistill.cli", "ardistill.evaluation", "ardistill.training", "ardistill.trajectories", "tiny"]
)


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
    """Start ``function(*args)`` in ``count`` processes; their tracebacks go to ``log``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        CONTEXT.Process(target=_enter, args=(rank, count, port, str(log), function, args), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def run(count: int, log: Path, function: Callable[..., Any], *args: Any) -> None:
    """Start ``function(*args)`` in ``count`` processes and wait until all have succeeded."""
    processes = start(count, log, function, *args)
    for process in processes:
        process.join(550)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count, log.read_text() if log.exists() else codes


def leavings(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves, by name: weights, EMA, optimiser, schedule, counters, log."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in (x for x in sorted(folder.rglob("*")) if x.is_file()):
        if path.suffix == ".safetensors":  # processes divide replicated tensors among them arbitrarily
            for name, value in load_file(path).items():
                place = f"{path.parent.relative_to(folder)}/{name}"
                found.setdefault(place, []).append((str(value.dtype), value.shape, value.numpy().tobytes()))
        elif path.name not in ("manifest.json", "environment.json"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@contextlib.contextmanager
def as_on_cuda(writes_aside: bool) -> Iterator[None]:
    """Within, a training on the CPU goes as one on CUDA: fused optimiser, late readings, checkpoints by a thread."""
    loop = importlib.import_module("ardistill.training.distill")  # the module: the room's name is the function
    kind, writer = loop.optimizer_kind, loop.CheckpointWriter
    loop.optimizer_kind = lambda device: "fused"
    loop.CheckpointWriter = lambda folder, keep, aside: writer(folder, keep, writes_aside)
    try:
        yield
    finally:
        loop.optimizer_kind, loop.CheckpointWriter = kind, writer


def train(
    name: str,
    data: str,
    run: str,
    training: dict[str, Any],
    student: dict[str, Any] | None = None,
    cuda: bool = False,
) -> Any:
    """Distil the tiny teacher ``name`` in this process; the loss of each pass goes to ``run.losses-rank``.

    Args:
        name: A key of ``TINY``.
        data: Its trajectories.
        run: Run folder.
        training: Options of the training that differ from those of most tests.
        student: Options of the student.
        cuda: Whether it goes `as_on_cuda`.

    Returns:
        The student.
    """
    from diffusers import DDIMScheduler
    from tiny import TINY, open_gates

    from ardistill.config import TrainingConfig
    from ardistill.student import Student, StudentConfig
    from ardistill.teacher import Teacher
    from ardistill.trajectories import TrajectoryDataset

    loop = importlib.import_module("ardistill.training.distill")  # the module: the room's name is the function
    teacher = Teacher(TINY[name].transformer(), DDIMScheduler())
    recorded = TrajectoryDataset(data, 4)
    made = Student.from_teacher(teacher, StudentConfig(recorded.knots, 2, **(student or {})))
    open_gates(made)
    options = {"batch_size": 4, "tracker": None, "learning_rate": 1e-3, "ema_decay": 0.5}
    regression_loss = loop.regression_loss

    def noted(*arguments: Any) -> Any:
        loss, errors = regression_loss(*arguments)
        with open(f"{run}.losses-{os.environ.get('RANK', 0)}", "a") as file:
            file.write(f"{float(loss.detach())}\n")
        return loss, errors

    loop.regression_loss = noted
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    try:
        with as_on_cuda(writes_aside=alone) if cuda else contextlib.nullcontext():
            return loop.distill(made, recorded, run, TrainingConfig(**(options | training)), progress=False)
    finally:
        loop.regression_loss = regression_loss


def _leave_half_a_run(folder: str, steps: int) -> None:
    """Leave in ``ddp-then-shard`` what the run ``ddp``, killed after its last checkpoint but one, leaves."""
    last = f"step-{steps:08d}"
    shutil.copytree(f"{folder}/ddp", f"{folder}/ddp-then-shard", ignore=shutil.ignore_patterns("student", last))


def train_all(folder: str, jobs: list[tuple]) -> None:
    """Run several distillations of the tiny DiT, (name, training, student, cuda), in the same processes."""
    import torch
    from accelerate.state import AcceleratorState
    from torch.distributed.tensor import DTensor

    for name, options, *more in jobs:
        made = train("dit", f"{folder}/data", f"{folder}/{name}", options, *more)
        divided = [isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in made.parameters()]
        own = [p for p in made.parameters() if p.numel() > 1]  # a gate is one number
        assert sum(divided) >= len(own) if options.get("shard") else not any(divided)
        AcceleratorState._reset_state()
        if name == "ddp" and torch.distributed.get_rank() == 0:
            _leave_half_a_run(folder, options["max_steps"])
        torch.distributed.barrier()


def finetune_all(folder: str, jobs: list[tuple]) -> None:
    """Run several distillations of the tiny DiT against a discriminator, (name, training), in the same processes."""
    import torch
    from accelerate.state import AcceleratorState
    from diffusers import DDIMScheduler
    from safetensors.torch import save_file
    from tiny import TINY, open_gates

    from ardistill.config import AdversarialConfig, TrainingConfig
    from ardistill.student import Student, StudentConfig
    from ardistill.teacher import Teacher
    from ardistill.training import distill
    from ardistill.training.adversary import Adversary
    from ardistill.trajectories import TrajectoryDataset

    teacher = Teacher(TINY["dit"].transformer(), DDIMScheduler())
    data, adversarial = TrajectoryDataset(f"{folder}/data", 4), AdversarialConfig(hidden=8, warmup_steps=2)
    for name, training in jobs:
        student = Student.from_teacher(teacher, StudentConfig(data.knots, 2))
        open_gates(student)
        adversary = Adversary.of_real(teacher, f"{folder}/real.safetensors", adversarial)
        options = TrainingConfig(batch_size=4, tracker=None, learning_rate=1e-3, ema_decay=0.5, **training)
        distill(student, data, f"{folder}/{name}", options, critic=adversary, progress=False)
        AcceleratorState._reset_state()
        if torch.distributed.get_rank() == 0:
            save_file(adversary.network.state_dict(), f"{folder}/{name}-heads.safetensors")
            if name == "ddp":
                _leave_half_a_run(folder, training["max_steps"])
        torch.distributed.barrier()


def compare_families(folder: str) -> None:
    """Compare loss and gradient norm of each family with whole and with divided weights."""
    import torch
    from tiny import TINY, open_gates
    from torch import nn
    from torch.distributed.tensor import DTensor

    from ardistill.core.knots import Knots
    from ardistill.student import Student, StudentConfig
    from ardistill.training.fsdp import shard

    torch.distributed.init_process_group("gloo")
    knots = Knots.from_dict(json.loads(Path(folder, "knots.json").read_text()))
    for name, tiny in TINY.items():
        found = []
        for divided in (False, True):
            student = Student(tiny.transformer(), StudentConfig(knots, 2))
            open_gates(student)
            student.enable_gradient_checkpointing()
            if divided:
                shard(student, torch.device("cpu"))
            student.train()
            inputs = torch.randn(2, 4, *tiny.latents, generator=torch.Generator().manual_seed(0))
            loss = student(inputs, tiny.condition(2)).square().mean()
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in student.parameters() if p.grad is not None])
            found.append((loss.detach(), norm.full_tensor() if isinstance(norm, DTensor) else norm))
        for whole, parts in zip(*found, strict=True):
            assert torch.allclose(whole, parts, rtol=1e-4), (name, found)


def compare_parts(folder: str) -> None:
    """Compare students whose processes read their parts alone with those that were made whole, bit by bit."""
    import torch
    from tiny import TINY
    from torch.distributed.tensor import DTensor

    from ardistill.core.knots import Knots
    from ardistill.student import Student, StudentConfig
    from ardistill.student.lora import add_adapters
    from ardistill.teacher.unread import leave_unread
    from ardistill.training.fsdp import shard

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    knots = Knots.from_dict(json.loads(Path(folder, "knots.json").read_text()))
    more = [{}, {"lora_rank": 2, "output": "direct", "target": "anchored"}, {"guidance_range": (1.0, 4.0)}]
    for number, name in enumerate(("dit", "hunyuandit", "flux", "lumina2", "wan", "pixart-alpha")):
        whole, options, saved = TINY[name].transformer(), more[number % len(more)], Path(folder, str(rank), name)
        dtype = torch.bfloat16 if "lora_rank" in options else torch.float32
        whole.save_pretrained(saved, max_shard_size="30KB")
        read = type(whole).from_pretrained(saved, torch_dtype=dtype)
        unread = leave_unread(type(whole), dict(whole.config), sorted(saved.glob("*.safetensors")), dtype)
        expected, found = (Student(x, StudentConfig(knots, 2, **options)) for x in (read, unread))
        for student in (expected, found) if "lora_rank" in options else ():
            own = {*student.transformer.attachment.own_weights}
            base = [p for n, p in student.transformer.named_parameters() if n not in own]
            add_adapters(student.transformer, base, student.family.block_lists, 2)
        assert any(p.is_meta for p in found.parameters()), name
        shard(found, torch.device("cpu"))
        there = found.state_dict()
        assert there.keys() == expected.state_dict().keys(), name
        for key, value in expected.state_dict().items():
            other = there[key]
            if isinstance(other, DTensor):
                other, parts = other.to_local(), value.chunk(2)
                value = parts[rank] if rank < len(parts) else value[:0]
            assert value.dtype == other.dtype and torch.equal(value, other), (name, options, key)


IN_PARTS = ["--num_steps", "4", "--history_layers", "2", "--training.batch_size", "2", "--training.shard", "true"]
IN_PARTS += ["--training.checkpoint_every", "1", "--training.tracker", "null", "--lora_rank", "2"]
IN_PARTS += ["--weights", "bfloat16", "--training.max_steps"]
"""The options of every command of `distill_in_parts`, to which the number of steps is added."""


def distill_in_parts(folder: str) -> None:
    """Distil a saved teacher whose weights are divided, by the command, and from Python with a teacher read whole.

    Adapters on a base in bfloat16, and pictures; the second run of the command resumes from half of the steps.
    """
    from accelerate.state import AcceleratorState

    from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill
    from ardistill.cli import main

    data = f"{folder}/data"
    teacher = Teacher.from_pretrained(f"{folder}/teacher", device="cpu", weights="bfloat16")
    recorded = TrajectoryDataset(data, 4)
    student = Student.from_teacher(teacher, recorded.student_config(2, lora_rank=2))
    config = TrainingConfig(batch_size=2, shard=True, max_steps=2, checkpoint_every=1, tracker=None)
    for run, count in (("parts", 2), ("resumed", 1), ("resumed", 2)):  # first, as the command connects the processes
        main(["distill", "--trajectories", data, "--out", f"{folder}/{run}", *IN_PARTS, str(count)])
        AcceleratorState._reset_state()
    distill(student, recorded, f"{folder}/whole", config, progress=False)
