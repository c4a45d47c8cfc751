"""Peak memory of `record`, `distill`, `export` and `sample` with a teacher of a billion weights, against the plan.

    python benchmarks/large_teacher.py [--json benchmarks/results/large_teacher.json] [--layers 12]

A DiT of random weights, 80 million parameters a layer, is saved in bfloat16. Each command is a process of its own on a
CPU: two trajectories in four guided solver steps, two training steps of adapters on the base in bfloat16 (batch 1,
S = 4, N = 6, rank 16), the export in bfloat16, and one image of it. Peaks are those of resident memory above what a
process holds once everything is imported, as in sharded_memory.py. The plan is that of `ardistill cost`; it has no line
for `export`, which reads the finished student, float32, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from sharded_memory import peaks_of

from ardistill.config import CostConfig
from ardistill.planning import cost
from ardistill.planning.counting import make

RANK = 16
BOUND = 0.1
"""Relative difference of plan and measurement that is allowed."""
NARROW = ["--weights", "bfloat16"]


def prepare(folder: Path, layers: int) -> int:
    """Write the teacher; the number of its parameters."""
    torch.manual_seed(0)
    facts = {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": layers, "sample_size": 4}
    facts |= {"in_channels": 3, "out_channels": 3, "_class_name": "DiTTransformer2DModel"}
    made = make(facts, torch.bfloat16)
    made.save_pretrained(folder / "teacher" / "transformer")
    DDIMScheduler().save_pretrained(folder / "teacher" / "scheduler")
    return sum(x.numel() for x in made.parameters())


def commands(folder: Path) -> dict[str, list[str]]:
    """The arguments of each command, in the order in which they run."""
    teacher, trajectories, run, export = (str(folder / x) for x in ("teacher", "trajectories", "run", "export"))
    on_cpu = ["--device", "cpu"]
    record = ["--teacher", teacher, "--out", trajectories, "--num_trajectories", "2", "--guidance_scale", "2"]
    record += ["--solver_steps", "4", "--num_steps", "[4]", "--batch_size", "1", "--mixed_precision", "bf16"]
    distill = ["--trajectories", trajectories, "--out", run, "--num_steps", "4", "--history_layers", "6"]
    distill += ["--lora_rank", str(RANK), "--training.mixed_precision", "bf16", "--training.batch_size", "1"]
    distill += ["--training.max_steps", "2", "--training.checkpoint_every", "2", "--training.tracker", "null"]
    sample = ["--student", export, "--out", str(folder / "sample.png"), "--count", "1", "--mixed_precision", "bf16"]
    return {
        "record": ["record", *record, *NARROW, *on_cpu],
        "distill": ["distill", *distill, *NARROW, *on_cpu],
        "export": ["export", "--student", run, "--out", export, "--dtype", "bfloat16"],
        "sample": ["sample", *sample, *on_cpu],
    }


def planned(folder: Path, parameters: int) -> dict[str, int]:
    """Bytes that each command is to take."""
    config = str(folder / "teacher" / "transformer" / "config.json")
    options: dict[str, Any] = {"weights": "bfloat16", "mixed_precision": "bf16", "lora_rank": RANK, "batch_size": 1}
    found = cost(CostConfig(config, num_steps=4, history_layers=6, guidance_scale=2.0, **options))
    sizes = {name: found.stages[name] for name in ("record", "distill", "sample")}
    return sizes | {"export": 4 * parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = prepare(folder, args.layers)
        content: dict[str, Any] = {"parameters": parameters, "bound": BOUND, "runs": []}
        plan = planned(folder, parameters)
        for command, arguments in commands(folder).items():
            row = {"command": command} | peaks_of(arguments, [{}]) | {"planned": plan[command]}
            row["planned_over_measured"] = round(plan[command] / row["rss"], 3)
            row["within_bound"] = abs(plan[command] - row["rss"]) <= BOUND * row["rss"]
            content["runs"].append(row)
            print(json.dumps(row), flush=True)
            if args.json:
                args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
