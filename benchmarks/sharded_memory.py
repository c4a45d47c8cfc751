"""Peak memory of each process of `ardistill distill`: one that holds everything, against two that hold their parts.

    python benchmarks/sharded_memory.py [--json benchmarks/results/sharded_memory.json] [--layers 14]

A DiT of random weights, 21 million parameters a layer, is saved as safetensors and recorded. Each run is the command
itself: it reads the teacher, measures the distance to the solver, trains one step in float32 (batch 1, S = 4, N = 4),
writes a checkpoint and pictures, and gathers the student. Two processes are connected over gloo and divide the weights
(FSDP2). Beside the peak of the resident memory, which counts pages of files that are mapped while they are read, stands
that of the anonymous memory, which does not; both without what a process holds once everything is imported. Freed
memory goes back to the system at once, as in memory.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576", "OMP_NUM_THREADS": "1"}
KINDS = {
    "all weights": [],
    "adapters on bfloat16": ["--lora_rank", "16", "--weights", "bfloat16", "--training.mixed_precision", "bf16"],
}
FIELDS = {"rss": "VmRSS", "anonymous": "RssAnon", "mapped": "RssFile"}
BOUND = 0.6
"""Share of one process's peak that each of two may take."""


def held(pid: int) -> dict[str, int]:
    """Bytes that a process holds now: resident, anonymous, and of mapped files."""
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: 1024 * int(lines.get(field, "0").split()[0]) for name, field in FIELDS.items()}


def prepare(folder: Path, layers: int) -> int:
    """Write a teacher and two of its trajectories; the number of its parameters."""
    import torch
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    from ardistill import Teacher, record

    torch.manual_seed(0)
    made = DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=64, num_layers=layers, sample_size=8, in_channels=3, out_channels=3
    )
    made.save_pretrained(folder / "teacher" / "transformer")
    DDIMScheduler().save_pretrained(folder / "teacher" / "scheduler")
    del made
    teacher = Teacher.from_pretrained(folder / "teacher", device="cpu")
    record(teacher, folder / "trajectories", 2, solver_steps=4, num_steps=(4,), shard_size=2, progress=False)
    return sum(x.numel() for x in teacher.transformer.parameters())


def train(arguments: list[str]) -> None:
    """Import everything, tell what is held then, wait for a line of standard input, and run the command."""
    import ardistill.evaluation
    import ardistill.training  # noqa: F401
    from ardistill.cli import main

    print(json.dumps(held(os.getpid())), flush=True)
    sys.stdin.readline()
    main(arguments)


def peaks_of(arguments: list[str], environments: list[dict[str, str]]) -> dict[str, int]:
    """Run the command in one process per environment; peaks of the one that takes most, in bytes above what it had
    imported, and the seconds that passed.

    Raises:
        RuntimeError: A process failed.
    """
    command, pipes = [sys.executable, __file__, "--train", *arguments], {"stdin": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen(command, env=os.environ | ALLOCATOR | own, stdout=subprocess.PIPE, **pipes)
        for own in environments
    ]
    before = [json.loads(x.stdout.readline()) for x in running]
    peaks, began = [dict.fromkeys(FIELDS, 0) for _ in running], time.perf_counter()
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    while any(process.poll() is None for process in running):
        for process, peak in zip(running, peaks, strict=True):
            try:
                now = held(process.pid)
            except (OSError, ValueError):
                continue
            peak.update({name: max(value, now[name]) for name, value in peak.items()})
        time.sleep(0.005)
    if any(process.returncode for process in running):
        raise RuntimeError(f"{arguments[0]}: status {[process.returncode for process in running]}")
    most = {name: max(peak[name] - was[name] for peak, was in zip(peaks, before, strict=True)) for name in FIELDS}
    return most | {"seconds": round(time.perf_counter() - began)}


def measure(folder: Path, kind: str, count: int) -> dict[str, Any]:
    """Run `distill` in so many processes."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = ["distill", "--trajectories", str(folder / "trajectories")]
    command += ["--num_steps", "4", "--history_layers", "4", "--out", str(out), "--training.max_steps", "1"]
    command += ["--training.batch_size", "1", "--training.checkpoint_every", "1", "--training.tracker", "null"]
    command += [*KINDS[kind], "--training.shard", str(count > 1).lower()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    facts = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} | facts for rank in range(count)] if count > 1 else [{}]
    environments = [{name: str(value) for name, value in own.items()} for own in ranks]
    return {"kind": kind, "processes": count} | peaks_of(command, environments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--layers", type=int, default=14)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parameters = prepare(Path(folder), args.layers)
        content: dict[str, Any] = {"parameters": parameters, "bytes": 4 * parameters, "bound": BOUND, "runs": []}
        for kind in KINDS:
            one = measure(Path(folder), kind, 1)
            print(json.dumps(one), flush=True)
            two = measure(Path(folder), kind, 2)
            two |= {f"{name}_of_one": round(two[name] / one[name], 3) for name in ("rss", "anonymous")}
            two["within_bound"] = two["rss_of_one"] < BOUND
            content["runs"] += [one, two]
            print(json.dumps(two), flush=True)
            if args.json:
                Path(args.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2:])
    else:
        main()
