"""Parts that run the commands' functions: recording, equal results, the quickstart's way, several processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from gpu_parts.bench import Bench, Figures, NotMeasuredError, drawer, student_on
from gpu_parts.measure import PeakMemory, bytes_of, count_flops, largest_difference, precision, tf32

import ardistill
from ardistill import Student, StudentConfig, Teacher, TrainingConfig, TrajectoryDataset, distill, record, sample
from ardistill.devices import synchronize


def recording(bench: Bench) -> None:
    """``record`` as it is by default, compiled, and the solver alone.

    Arms name the rate that they give: ``whole call`` is all trajectories over all seconds, and ``steady`` is that
    between the first shard and the last, without the start, such as fingerprint, choice of the batch and compilation.
    """
    size, teacher = bench.size, bench.teacher
    knots = teacher.knots(size.solver_steps)
    noise, condition = bench.noise(size.shard), bench.labels(size.shard)
    flops = knots.num_steps * count_flops(
        lambda: teacher.predict(noise[:1], knots.timesteps[0], bench.labels(1))
    )  # of a trajectory

    def rate(per_second: float, precision: str) -> Figures:
        named = {"no": "tf32" if bench.device.type == "cuda" else "fp32"}.get(precision, precision)
        return {"per_second": per_second, "ms": 1000 / per_second, "flops": flops, "precision": named}

    def both(name: str, recorded: Teacher, **options: Any) -> None:
        folder, whole = Path(bench.folder.name) / "recording", dict[str, Any]()
        given = {"solver_steps": size.solver_steps, "shard_size": size.shard, "progress": False} | options

        def run() -> Figures:
            shutil.rmtree(folder, ignore_errors=True)
            began = time.perf_counter()
            with PeakMemory(bench.device, bytes_of(recorded.transformer)) as memory:
                manifest = record(recorded, folder, size.record, **given)
                synchronize(bench.device)
            seconds, named = time.perf_counter() - began, manifest.mixed_precision
            whole.update(rate(size.record / seconds, named) | {"seconds": seconds} | memory.figures())
            written = sorted(x.stat().st_mtime for x in folder.iterdir() if x.suffix == ".arrow")
            steady = (len(written) - 1) * size.shard / max(written[-1] - written[0], 1e-9)
            return rate(steady, named) | memory.figures()

        bench.arm(f"{name}, steady", run)
        if whole:
            bench.arm(f"{name}, whole call", lambda: whole)

    def alone() -> Figures:
        with precision("bf16", bench.device):
            found = bench.timed(lambda: teacher.solve_ode(noise, condition, knots), 4)
        rows = {name: found[name] / size.shard for name in ("ms", "ms_low", "ms_high")}
        return rate(1000 / rows["ms"], "bf16") | rows

    bench.arm("solver alone, bf16", alone)
    both("by default", teacher)
    other = Teacher(bench.transformer(), teacher.scheduler, guidance_scale=teacher.guidance_scale)  # it stays compiled
    both("compiled, bf16", other, compile=True, mixed_precision="bf16")


def equality(bench: Bench) -> None:
    """Differences from eager results over the largest value, at four layers: compiled in float32, without TF32, and
    graphed with weights in bfloat16.
    """
    noise, condition = bench.noise(2), bench.labels(2)
    inputs = torch.randn(2, 4, *noise.shape[1:], device=bench.device)
    weights = {kind: bench.transformer(min(4, bench.size.layers)) for kind in ("fp32", "bf16 weights")}
    weights["bf16 weights"].to(torch.bfloat16)

    def student(config: StudentConfig, kind: str) -> Student:
        made = student_on(weights[kind], config).eval()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name.endswith("history_gate"):
                    parameter.fill_(0.3)  # nothing is hidden behind a closed gate
        return made

    def drawn(config: StudentConfig, way: str, kind: str) -> Figures:
        found, expected = (drawer(student(config, kind), noise, condition, x, "no")() for x in (way, "eager"))
        assert isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor)
        return {"difference": largest_difference(found, expected)}

    def folded(config: StudentConfig) -> Figures:
        compiled = student(config, "fp32")
        compiled.compile()
        with torch.no_grad():
            found, expected = compiled(inputs, condition), student(config, "fp32")(inputs, condition)
        return {"difference": largest_difference(found, expected)}

    configs = {"gated": StudentConfig(bench.knots, 2), "softmax": StudentConfig(bench.knots, 2, gated=False)}
    with tf32(False):
        for name, config in configs.items():
            bench.arm(f"sample, {name}, graphed", lambda config=config: drawn(config, "graphed", "bf16 weights"))
        for name, config in configs.items():
            bench.arm(f"sample, {name}, compiled", lambda config=config: drawn(config, "compiled", "fp32"))
            bench.arm(f"folded pass, {name}, compiled", lambda config=config: folded(config))


def quickstart(bench: Bench) -> None:
    """What the README's Python does, in small, with the embedded teacher."""
    folder, small = Path(bench.folder.name) / "quickstart", bench.name == "tiny"
    count, steps = (8, 2) if small else (256, 20)
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25, device=bench.device)

    def seconds(run: Callable[[], Figures | None]) -> Callable[[], Figures]:
        def call() -> Figures:
            began = time.perf_counter()
            found = run() or {}
            synchronize(bench.device)
            return found | {"seconds": time.perf_counter() - began}

        return call

    def recorded() -> None:
        options: dict[str, Any] = {"solver_steps": 4, "num_steps": (4,)} if small else {}
        record(teacher, folder / "trajectories", count, progress=False, **options)
        record(teacher, folder / "held_out", count, seed=1, progress=False, **options)

    def trained(max_steps: int) -> Figures:
        data = TrajectoryDataset(folder / "trajectories", num_steps=4)
        student = Student.from_teacher(teacher, data.student_config(history_layers=7))
        config = TrainingConfig(max_steps=max_steps, batch_size=count // 4, tracker=None)
        student = distill(student, data, folder / "ard", config, progress=False)
        AcceleratorState._reset_state()
        return {"device": str(student.device)}

    def drawn() -> Figures:
        student = Student.from_pretrained(folder / "ard", bench.device)
        labels = {"class_labels": torch.arange(4) % 10}
        found = sample(student, torch.randn(4, *teacher.sample_shape), labels)[:, -1]
        return {"finite": bool(found.isfinite().all()), "std": float(found.std())}

    def compared() -> Figures:
        found = ardistill.compare_students(
            [folder / "ard"], folder / "held_out", folder / "comparison", device=bench.device
        )
        return {"arms": len(found.arms)}

    def exported() -> Figures:
        ardistill.export(Student.from_pretrained(folder / "ard", bench.device), teacher, folder / "student")
        return {"images": len(ardistill.load(folder / "student").to(bench.device)([0, 1]).images)}

    bench.arm("record", seconds(recorded))
    bench.arm("distill", seconds(lambda: trained(steps)))
    bench.arm("resume", seconds(lambda: trained(2 * steps)))
    bench.arm("sample", seconds(drawn))
    bench.arm("compare", seconds(compared))
    bench.arm("export and draw", seconds(exported))


def processes(bench: Bench) -> None:
    """``distill`` in one process per GPU over NCCL: whole weights, divided ones, and adapters on a divided base.

    A DiT of this size with random weights is read from its files: from all of them, or by each process from its part
    alone. ``peak_bytes`` is the most that any card held beyond what it held before, CUDA's own memory included.
    """
    folder = Path(bench.folder.name) / "processes"
    arms = {
        "whole weights": [],
        "divided weights": ["--training.shard", "true"],
        "divided weights, adapters on bfloat16": [
            "--training.shard", "true", "--lora_rank", "16", "--weights", "bfloat16"
        ],
    }  # fmt: skip

    def run(name: str, options: list[str]) -> Figures:
        count = torch.cuda.device_count() if bench.device.type == "cuda" else 0
        if count < 2:
            raise NotMeasuredError(f"several processes need two GPUs or more, this machine has {count}")
        if not (folder / "trajectories").exists():
            bench.transformer().save_pretrained(folder / "teacher" / "transformer")
            bench.teacher.scheduler.save_pretrained(folder / "teacher" / "scheduler")
            teacher = Teacher.from_pretrained(folder / "teacher", weights="float32")
            record(teacher, folder / "trajectories", 64, solver_steps=4, num_steps=(4,), progress=False)
            del teacher
            torch.cuda.empty_cache()
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
        command = ["-m", "ardistill", "distill", "--trajectories", str(folder / "trajectories"), "--num_steps", "4"]
        command += ["--out", str(folder / name.replace(" ", "-")), "--history_layers", str(bench.size.history_layers)]
        command += ["--training.max_steps", "20", "--training.batch_size", str(bench.size.batch), *options]
        began, peak, before = time.perf_counter(), 0, _held_on_cards(count)
        with tempfile.TemporaryFile("w+") as errors:
            started = subprocess.Popen([*launch, *command], stdout=subprocess.DEVNULL, stderr=errors)
            while started.poll() is None:
                peak = max(peak, *(now - then for now, then in zip(_held_on_cards(count), before, strict=True)))
                time.sleep(0.02)
            errors.seek(0)
            if started.returncode:
                raise RuntimeError((errors.read().strip() or "no message").splitlines()[-1])
        return {"processes": count, "seconds": time.perf_counter() - began, "peak_bytes": peak}

    for name, options in arms.items():
        bench.arm(name, lambda name=name, options=options: run(name, options))


def _held_on_cards(count: int) -> list[int]:
    """Bytes that are in use on each of the first cards, by whichever process."""
    found = (torch.cuda.mem_get_info(card) for card in range(count))
    return [total - free for free, total in found]
