"""Four-step sampling at DiT-XL/2 shapes on a CPU, batch 1: what history costs, masks M1 to M4.

    python benchmarks/latency.py [--architecture DiT-XL/2] [--rounds 8] [--json FILE]

All arms share one set of random weights. Each run of an arm stands beside a run without history, before and after it
in turn; overheads are medians of the ratios of such pairs, with a 95 % bootstrap interval. `benchmarks/gpu.py` does the
same on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from gpu_parts.bench import student_on
from gpu_parts.measure import paired
from train_step import matmul_peak

from ardistill.planning import transformer_config
from ardistill.student import StudentConfig, sample
from ardistill.teacher import knots_from_scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="DiT-XL/2")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--arms", nargs="+", help="only these, such as 'N=6 M4' and 'N=6 gated'; all if not given")
    parser.add_argument("--json")
    args = parser.parse_args()
    config = transformer_config(args.architecture)
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(**{k: v for k, v in config.items() if k != "_class_name"}).eval()
    knots, depth, device = knots_from_scheduler(DDIMScheduler(), 4), config["num_layers"], torch.device("cpu")
    noise, condition = torch.randn(1, 4, 32, 32), {"class_labels": torch.tensor([207])}
    configs = {
        f"N={n} {kind}": StudentConfig(knots, n, "M4" if kind == "gated" else kind, gated=kind == "gated")
        for n in (6, depth)
        for kind in ("M1", "M2", "M3", "M4", "gated")
    }
    base = student_on(transformer, StudentConfig(knots, 0))
    rows = {}
    for name, student_config in configs.items():
        if args.arms and name not in args.arms:
            continue
        student = student_on(transformer, student_config)
        found = paired(
            lambda: sample(base, noise, condition),
            lambda student=student: sample(student, noise, condition),
            device,
            seconds=0,
            least=args.rounds,
        )
        overhead = {x: found[y] - 1 for x, y in (("overhead", "ratio"), ("low", "ratio_low"), ("high", "ratio_high"))}
        rows[name] = {"ms": found["ms"], "base_ms": found["base_ms"]} | overhead
        print(f"{name:<12}{found['ms']:9.0f} ms  {overhead['overhead']:+.2%}", flush=True)
    noisy, both = torch.full((2,), 500.0), {"class_labels": torch.tensor([207, 1000])}  # a class, and no class
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(25):  # noise, class and no class side by side
            base.family.call(transformer, noise.repeat(2, 1, 1, 1), noisy, both)
    teacher_ms = 1000 * (time.perf_counter() - began)
    flops = 2 * 474.67e9 if args.architecture == "DiT-XL/2" else None
    fastest = min(row["base_ms"] for row in rows.values())
    facts = {
        "architecture": args.architecture,
        "threads": torch.get_num_threads(),
        "share_of_matmul_peak": flops and flops / (fastest / 1000) / matmul_peak(),
        "teacher_25_guided_steps_ms": teacher_ms,
        "arms": rows,
    }
    print(f"teacher     {teacher_ms:9.0f} ms  25 guided steps")
    if args.json:
        Path(args.json).write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
