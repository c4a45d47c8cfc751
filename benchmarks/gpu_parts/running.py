"""Parts that run the commands' functions: recording, equal results, the quickstart's way, several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from gpu_parts.bench import Bench, Figures, NotAvailableError, draw, drawer, require, student_on
from gpu_parts.measure import PeakMemory, count_flops, largest_difference, precision

import ardistill
from ardistill import Student, StudentConfig, Teacher, TrainingConfig, TrajectoryDataset, distill, record, sample
from ardistill.devices import synchronize


def recording(bench: Bench) -> None:
    """``record`` as it is by default, compiled, and the solver alone."""
    size, teacher = bench.size, bench.teacher
    knots = teacher.knots(size.solver_steps)
    noise, condition = bench.noise(size.shard), bench.labels(size.shard)
    flops = knots.num_steps * count_flops(
        lambda: teacher.predict(noise[:1], knots.timesteps[0], bench.labels(1))
    )  # of a trajectory

    def run(count: int, **options: Any) -> Figures:
        folder = Path(bench.folder.name) / "recording"
        shutil.rmtree(folder, ignore_errors=True)
        given = {"solver_steps": size.solver_steps, "shard_size": size.shard, "progress": False} | options
        began = time.perf_counter()
        with PeakMemory(bench.device) as memory:
            manifest = record(teacher, folder, count, **given)
            synchronize(bench.device)
        seconds = time.perf_counter() - began
        written = sorted(x.stat().st_mtime for x in folder.iterdir() if x.suffix == ".arrow")
        steady = (len(written) - 1) * size.shard / max(written[-1] - written[0], 1e-9)
        found = {"per_second": steady, "per_second_whole_call": count / seconds, "seconds": seconds}
        named = {"no": "fp32"}.get(manifest.mixed_precision, manifest.mixed_precision)
        return found | {"ms": 1000 / steady, "flops": flops, "precision": named} | memory.figures()

    def compiled() -> Figures:
        require("record(compile=)")
        return run(size.record, compile=True)

    def alone() -> Figures:
        with precision("bf16", bench.device):
            found = bench.timed(lambda: teacher.solve_ode(noise, condition, knots), 4)
        rows = {name: found[name] / size.shard for name in ("ms", "ms_low", "ms_high")}
        return rows | {"per_second": 1000 / rows["ms"], "flops": flops, "precision": "bf16"}

    bench.arm("solver alone, bf16", alone)
    bench.arm("by default", lambda: run(size.record))
    bench.arm("compiled", compiled)


def equality(bench: Bench) -> None:
    """Differences from eager results over the largest value, at four layers: compiled (float32), graphed (bf16)."""
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
        found = drawer(student(config, kind), noise, condition, way, kind)()
        assert isinstance(found, torch.Tensor)
        return {"difference": largest_difference(found, draw(student(config, kind), noise, condition, kind))}

    def folded(config: StudentConfig) -> Figures:
        require("student.compile()")
        compiled = student(config, "fp32")
        compiled.compile()
        with torch.no_grad():
            found, expected = compiled(inputs, condition), student(config, "fp32")(inputs, condition)
        return {"difference": largest_difference(found, expected)}

    configs = {"gated": StudentConfig(bench.knots, 2), "softmax": StudentConfig(bench.knots, 2, gated=False)}
    with precision("fp32", bench.device):
        for name, config in configs.items():
            bench.arm(f"folded pass, {name}, compiled", lambda config=config: folded(config))
            bench.arm(f"sample, {name}, compiled", lambda config=config: drawn(config, "compiled", "fp32"))
            bench.arm(f"sample, {name}, graphed", lambda config=config: drawn(config, "graphed", "bf16 weights"))


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
    """``distill`` in one process per GPU, with whole and with divided weights."""
    folder = Path(bench.folder.name) / "processes"

    def run(shard: bool) -> Figures:
        count = torch.cuda.device_count() if bench.device.type == "cuda" else 0
        if count < 2:
            raise NotAvailableError(f"several processes need two GPUs or more, this machine has {count}")
        if not (folder / "trajectories").exists():
            record(Teacher.from_pretrained("zoo/fashion"), folder / "trajectories", 256, progress=False)
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
        command = ["-m", "ardistill", "distill", "--trajectories", str(folder / "trajectories")]
        command += ["--num_steps", "4", "--out", str(folder / f"shard-{shard}"), "--training.max_steps", "20"]
        command += ["--training.batch_size", "16", "--training.shard", str(shard).lower()]
        began = time.perf_counter()
        done = subprocess.run([*launch, *command], env=dict(os.environ), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
        return {"processes": count, "seconds": time.perf_counter() - began}

    bench.arm("whole weights", lambda: run(False))
    bench.arm("divided weights", lambda: run(True))
