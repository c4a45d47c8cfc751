"""Peak memory of real training steps with the options that save memory; against `ardistill cost`.

    python benchmarks/memory.py [--json benchmarks/results/memory.json] [--teacher DiT-S/2] [--mode folded]

Each run is a process of its own: what the process gained, at its peak, over what it held before the model was made.
S = 4, N = 6 (gated), fp32, AdamW and EMA, two optimiser steps, gradients kept between them as in accumulated passes.
The EMA's place has no row, as a process on the CPU holds it in either. Rows are written as they come; those in the file
of runs not asked for stay. Freed memory goes back to the system at once, as it goes back to torch's own pool on a GPU;
with glibc's default allocator a process on the CPU takes 15 to 40 % more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.training_utils import EMAModel

from ardistill.config import CostConfig, TrainingConfig
from ardistill.planning import cost, transformer_config
from ardistill.planning.counting import example_knots
from ardistill.student import Student, StudentConfig
from ardistill.student.lora import add_adapters
from ardistill.training.optimizers import make_optimizer

ADAPTERS = {"lora_rank": 16}
MODES: dict[str, dict[str, Any]] = {
    "folded": {},
    "checkpointed": {"gradient_checkpointing": True},
    "every second": {"gradient_checkpointing": True, "checkpoint_stride": 2},
    "sequential": {"sequential": True},
    "detached": {"sequential": True},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "adapters": ADAPTERS,
    "adapters, sequential": ADAPTERS | {"sequential": True},
}
"""Mode -> the plan's options; `detached` also trains with detach_history, which the plan does not know."""
RUNS = [(name, 4, mode) for name in ("DiT-S/2", "DiT-B/2") for mode in MODES]
# glibc keeps most of what is freed, unless each large block is mapped on its own.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident() -> int:
    """Bytes that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measure(name: str, batch_size: int, mode: str) -> int:
    """Bytes at the peak, in this process."""
    plan = CostConfig(name, **MODES[mode])
    options = {"sequential": plan.sequential, "detach_history": mode == "detached"}

    def train(config: dict, count: int) -> None:
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(**{k: v for k, v in config.items() if k != "_class_name"})
        base = [*transformer.parameters()]
        student = Student(transformer, StudentConfig(example_knots(4), min(6, config["num_layers"]))).train()
        if plan.lora_rank:
            add_adapters(transformer, base, student.family.block_lists, plan.lora_rank)
        if plan.gradient_checkpointing:
            student.enable_gradient_checkpointing(plan.checkpoint_stride)
        parameters = [p for p in student.parameters() if p.requires_grad]
        optimizer = make_optimizer([{"params": parameters}], TrainingConfig(optimizer=plan.optimizer), fused=False)
        ema = EMAModel(parameters)
        inputs, condition = torch.randn(count, 4, 4, 32, 32), {"class_labels": torch.zeros(count, dtype=torch.long)}
        for _ in range(2):
            student(inputs, condition, **options).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            ema.step(parameters)

    train(transformer_config("DiT-S/8") | {"num_layers": 1}, 1)  # what torch itself takes at first use
    before = resident()
    train(transformer_config(name), batch_size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--teacher", help="of the runs, only these")
    parser.add_argument("--mode", choices=MODES, help="of the runs, only these")
    parser.add_argument("--one", nargs=3, help="name, batch and mode of a single run, in this process")
    args = parser.parse_args()
    if args.one:
        print(measure(args.one[0], int(args.one[1]), args.one[2]))
        return
    path = Path(args.json) if args.json else None
    found = json.loads(path.read_text()) if path and path.is_file() else []
    rows = {(row["teacher"], row["batch_size"], row["mode"]): row for row in found}
    chosen = [run for run in RUNS if args.teacher in (None, run[0]) and args.mode in (None, run[2])]
    for name, batch_size, mode in chosen:
        command = [sys.executable, __file__, "--one", name, str(batch_size), mode]
        environment = os.environ | ALLOCATOR
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        measured = int(done.stdout)
        row = {"teacher": name, "batch_size": batch_size, "mode": mode, "measured": measured}
        if mode != "detached":
            plan = CostConfig(name, batch_size=batch_size, gradient_accumulation_steps=2, **MODES[mode])
            row["planned"] = cost(plan).memory["total"]
            row["planned_over_measured"] = row["planned"] / measured
        rows[name, batch_size, mode] = row
        row["over_folded"] = measured / rows.get((name, batch_size, "folded"), row)["measured"]
        print(json.dumps(row), flush=True)
        if path:
            path.write_text(json.dumps([rows[run] for run in RUNS if run in rows], indent=1))


if __name__ == "__main__":
    main()
