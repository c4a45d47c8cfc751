"""Parts that train: the training pass beside the authors' code, and whole steps of ``distill``."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from gpu_parts.bench import Bench, Figures, NotMeasuredError, student_on
from gpu_parts.measure import PeakMemory, Run, bytes_of, count_flops, precision, tf32
from torch import Tensor

from ardistill import Student, StudentConfig, TrainingConfig, TrajectoryDataset, distill
from ardistill.devices import resolve_precision
from ardistill.training.batches import Batch
from ardistill.training.graphed import BEFORE, GraphedPass

AUTHORS = "authors"
"""Arm of the authors' model."""


def pass_bf16(bench: Bench) -> None:
    """Forward and backward of a training batch in bfloat16."""
    _passes(bench, "bf16", ("compiled and graphed", "eager", "graphed"))


def pass_tf32(bench: Bench) -> None:
    """Forward and backward of a training batch in TF32, as it is and in the fastest way."""
    _passes(bench, "tf32", ("compiled and graphed", "eager"))


def _passes(bench: Bench, kind: str, ways: tuple[str, ...]) -> None:
    """Arms of the training pass; each of ours runs beside the authors' code as it is, where that is given."""
    transformer, batch = bench.transformer().requires_grad_(True), bench.size.batch
    inputs, targets = torch.randn(2, batch, 4, 4, bench.size.latents, bench.size.latents, device=bench.device)
    students, base = bench.students(), list[Run]()

    def ours(config: StudentConfig, way: str) -> Figures:
        student, one = (student_on(transformer, config).train() for _ in range(2))
        if "compiled" in way:
            student.compile()
        flops = batch * count_flops(_pass(bench, one, kind, inputs[:1], targets[:1], ""))
        call = _pass(bench, student, kind, inputs, targets, way)
        return _measured(bench, student, call, kind, base) | {"flops": flops}

    if bench.reference:
        bench.arm(f"{AUTHORS}, eager", lambda: _authors(bench, "eager", kind, base))
    n = f"N={bench.size.history_layers}"
    for name in (f"{n} gated M2", "N=0", f"{n} softmax"):
        for way in ways if name == f"{n} gated M2" else ways[:1]:
            bench.arm(f"{name}, {way}", lambda name=name, way=way: ours(students[name], way))
    if bench.reference:
        bench.arm(f"{AUTHORS}, compiled", lambda: _authors(bench, "compiled", kind, base))


def _pass(bench: Bench, student: Student, kind: str, inputs: Tensor, targets: Tensor, way: str) -> Run:
    """A pass as `distill` makes it: weights are cast anew in each one."""
    given = Batch(inputs, targets, bench.labels(len(inputs)), False, torch.Generator())

    def run(batch: Batch) -> Tensor:
        with precision(kind, bench.device):
            loss = (student(batch.inputs, batch.condition) - batch.targets).square().mean()
        loss.backward()
        return loss.detach()

    passes: Callable[[Batch], Tensor] = run
    if "graphed" in way:
        if bench.device.type != "cuda":
            raise NotMeasuredError("CUDA graphs need a GPU")
        passes = GraphedPass(run, [*student.parameters()])

    def call() -> None:
        student.zero_grad(set_to_none=True)
        passes(given)

    return call


def _measured(bench: Bench, model: torch.nn.Module, call: Run, kind: str, base: list[Run]) -> Figures:
    """Time of a pass, alone or beside the authors', and its peak memory, weights included.

    ``first_s`` is that of a pass after those that compile and capture.
    """
    with tf32(kind != "fp32"):
        for _ in range(BEFORE):
            call()
        model.zero_grad(set_to_none=True)
        with PeakMemory(bench.device, bytes_of(model)) as memory:
            call()
            held = memory.figures()
        found = bench.beside(base, call)
    model.zero_grad(set_to_none=True)
    return found | {"precision": kind} | held


def _authors(bench: Bench, way: str, kind: str, base: list[Run]) -> Figures:
    """The pass of the authors' model; the first one becomes the baseline of the others."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from reference import load_reference

    size, batch = bench.size, bench.size.batch
    with bench.device:
        theirs = load_reference(bench.reference or "", size.heads * size.head_dim, size.layers, size.heads)
    theirs = theirs.to(bench.device)
    if way == "compiled":
        for block in theirs.blocks:  # what is done to ours
            block.compile()
    inputs, targets = torch.randn(2, batch, 4, 4, 32, 32, device=bench.device)  # the size that their code is made for
    noise, z15, z10, z5 = inputs.unbind(1)
    labels, times = torch.arange(batch, device=bench.device), torch.full((batch,), 999.0, device=bench.device)

    def run() -> None:
        theirs.zero_grad(set_to_none=True)
        with precision(kind, bench.device):
            outputs = theirs(z5, z10, z15, noise, times, size.history_layers, labels)
            errors = [(o[:, :4] - t).square().mean() for o, t in zip(outputs, targets.unbind(1), strict=True)]
            loss = sum(errors, torch.zeros((), device=bench.device)) / 4
        loss.backward()

    found = _measured(bench, theirs, run, kind, base)
    base.append(run)
    return found


class _EnoughError(Exception):
    """The steps that are timed are done."""


class _Clocked(TrajectoryDataset):
    """Notes when each batch is drawn, and ends the training after a number of them, before a checkpoint is written.

    Args:
        data: The trajectories.
        last: Batches to draw.
    """

    def __init__(self, data: TrajectoryDataset, last: int) -> None:
        super().__init__(data.store.path, data.knots)
        self.last = last
        self.drawn: list[float] = []

    def draw(self, *args: Any, **options: Any) -> Any:
        self.drawn.append(time.perf_counter())
        if len(self.drawn) > self.last:
            raise _EnoughError
        return super().draw(*args, **options)


def step(bench: Bench) -> None:
    """Whole training steps of ``distill``, and the pass alone in the same way."""
    config, batch = bench.data.student_config(history_layers=bench.size.history_layers), bench.size.batch
    states = bench.data.stacked(slice(batch))[0].to(bench.device)
    inputs, targets = states[:, :-1], states[:, 1:]
    one = Student.from_teacher(bench.teacher, config)
    flops = batch * count_flops(_pass(bench, one, "bf16", inputs[:1], targets[:1], ""))
    del one

    def alone(way: str) -> Figures:
        student = Student.from_teacher(bench.teacher, config).train()
        if "compiled" in way:
            student.compile()
        call = _pass(bench, student, "bf16", inputs, targets, way)
        return _measured(bench, student, call, "bf16", []) | {"flops": flops}

    def whole(lora_rank: int = 0, way: str | None = None, **more: Any) -> Figures:
        if way is not None:
            more |= {"mixed_precision": "bf16", "compile": "compiled" in way, "cuda_graph": "graphed" in way}
        if way is not None and "graphed" in way and bench.device.type != "cuda":
            raise NotMeasuredError("CUDA graphs need a GPU")
        found = _distil(bench, replace(config, lora_rank=lora_rank), more)
        return found if lora_rank else found | {"flops": flops}

    bench.arm("step, by default", whole)
    bench.arm("step, adapters, by default", lambda: whole(16))
    for way in ("eager", "graphed"):
        bench.arm(f"pass, {way}", lambda way=way: alone(way))
        bench.arm(f"step, {way}", lambda way=way: whole(way=way))
        bench.arm(f"step, adapters, {way}", lambda way=way: whole(16, way))
    bench.arm("step, checkpointing, eager", lambda: whole(gradient_checkpointing=True, way="eager"))


def _distil(bench: Bench, config: StudentConfig, options: dict[str, Any]) -> Figures:
    """Milliseconds of a step of ``distill``, between two batches that it draws."""
    first, last = bench.size.steps
    data, folder = _Clocked(bench.data, last), Path(bench.folder.name) / "run"
    training = TrainingConfig(max_steps=10_000, batch_size=bench.size.batch, tracker=None, **options)
    shared = bytes_of(bench.teacher.transformer) if config.lora_rank else 0
    with PeakMemory(bench.device, shared) as memory:
        student = Student.from_teacher(bench.teacher, config)
        try:
            distill(student, data, folder, training, progress=False)
        except _EnoughError:
            figures = memory.figures()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            AcceleratorState._reset_state()  # the next run may have another precision
    computed_in = resolve_precision(training.mixed_precision, bench.device)
    named = "bf16" if computed_in == "bf16" else "tf32" if bench.device.type == "cuda" else "fp32"
    ms = 1000 * (data.drawn[last] - data.drawn[first]) / (last - first)
    return {"ms": ms, "precision": named} | figures
