"""Does it run on your GPU? One script; please send its JSON back in an issue.

    python benchmarks/cuda_smoke.py                        # one GPU; minutes
    accelerate launch benchmarks/cuda_smoke.py             # all of them: DDP, and weights divided over them
    python benchmarks/cuda_smoke.py --size tiny            # seconds, on a CPU too

Random weights, nothing is downloaded. Record, train (fp32, bf16, checkpointing, adapters, divided), resume, draw,
export and draw from the export; each part's seconds and peak memory beside the figures of ``ardistill cost``, or its
error. A part that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from diffusers import DDIMScheduler

from ardistill import Student, Teacher, TrainingConfig, TrajectoryDataset, distill, export, load, record, sample
from ardistill.config import CostConfig
from ardistill.planning import cost
from ardistill.training import environment

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 3, "heads": 2, "head_dim": 8, "sample_size": 8, "batch": 4, "steps": 4},
    "DiT-XL/2": {"layers": 28, "heads": 16, "head_dim": 72, "sample_size": 32, "batch": 8, "steps": 20},
}


def make_teacher(size: dict[str, Any]) -> Teacher:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_layers=size["layers"],
        num_attention_heads=size["heads"],
        attention_head_dim=size["head_dim"],
        sample_size=size["sample_size"],
        out_channels=8,
    )
    return Teacher(transformer, DDIMScheduler(), guidance_scale=1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="DiT-XL/2" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--json", default="cuda_smoke.json")
    args = parser.parse_args()
    where, size = PartialState(), SIZES[args.size]
    device, cuda = where.device, where.device.type == "cuda"
    shared = [tempfile.mkdtemp()]
    broadcast_object_list(shared)  # the first one's, for all
    folder = Path(shared[0])
    rows: list[dict[str, Any]] = []
    teacher = make_teacher(size)

    def part(name: str, run: Callable[[], dict[str, Any] | None]) -> None:
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began, row = time.perf_counter(), {"part": name}
        try:
            row |= run() or {}
            if cuda:
                torch.cuda.synchronize()
                row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        rows.append(row | {"seconds": round(time.perf_counter() - began, 2)})
        AcceleratorState._reset_state()  # the next part may have another precision
        if where.is_main_process:
            print(json.dumps(rows[-1]), flush=True)

    def recorded() -> None:
        with where.main_process_first():
            options = {"solver_steps": 8, "num_steps": (4,), "shard_size": 16, "device": device, "progress": False}
            record(teacher, folder / "trajectories", 32, **options)

    part("record", recorded)
    data = TrajectoryDataset(folder / "trajectories", 4)
    config = data.student_config(history_layers=min(6, size["layers"]))
    base = TrainingConfig(
        max_steps=size["steps"], batch_size=size["batch"], checkpoint_every=size["steps"], tracker=None
    )

    def trained(name: str, training: TrainingConfig, lora_rank: int = 0) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            student = Student.from_teacher(teacher, replace(config, lora_rank=lora_rank))
            distill(student, data, folder / name, training, progress=False)
            losses = [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
            found: dict[str, Any] = {"first_loss": losses[0], "last_loss": losses[-1]}
            if args.size != "tiny":
                options: dict[str, Any] = {"batch_size": size["batch"], "mixed_precision": training.mixed_precision}
                options |= {"gradient_checkpointing": training.gradient_checkpointing, "lora_rank": lora_rank}
                options["num_devices"] = where.num_processes if training.shard else 1
                found["planned_gib"] = round(cost(CostConfig(args.size, **options)).memory["total"] / 2**30, 3)
            return found

        return run

    part("train fp32", trained("fp32", base))
    bf16 = replace(base, mixed_precision="bf16")
    part("train bf16", trained("bf16", bf16))
    part("train bf16, checkpointing", trained("checkpointing", replace(bf16, gradient_checkpointing=True)))
    part("train bf16, adapters", trained("adapters", bf16, lora_rank=16))
    if where.num_processes > 1:
        part("train bf16, divided", trained("divided", replace(bf16, shard=True)))
    part("resume", trained("bf16", bf16))
    if where.is_main_process:

        def drawn() -> dict[str, Any]:
            student = Student.from_pretrained(folder / "bf16").to(device)
            states, _, condition = data.stacked(slice(8))
            condition = {name: value.to(device) for name, value in condition.items()}
            images = sample(student, states[:, 0].to(device), condition)[:, -1]
            return {"finite": bool(torch.isfinite(images).all()), "std": float(images.std())}

        def exported() -> dict[str, Any]:
            export(Student.from_pretrained(folder / "bf16"), teacher.to("cpu"), folder / "export")
            return {"images": len(load(folder / "export").to(device)([0, 1]).images)}

        part("sample", drawn)
        part("export and draw", exported)
        report = {"environment": environment(), "size": args.size, "processes": where.num_processes, "parts": rows}
        Path(args.json).write_text(json.dumps(report, indent=1))
        failed = [row["part"] for row in rows if "error" in row]
        print(f"{len(rows) - len(failed)} of {len(rows)} parts ran; {args.json}" + f"; failed: {failed}" * bool(failed))
    where.wait_for_everyone()


if __name__ == "__main__":
    main()
