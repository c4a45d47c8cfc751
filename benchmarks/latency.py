"""Four-step sampling at DiT-XL/2 shapes, batch 1: what history costs, masks M1 to M4, fp32 and bf16.

    python benchmarks/latency.py [--architecture DiT-XL/2] [--rounds 8] [--json FILE]

All arms share one set of random weights. Each run of an arm stands beside a run of its baseline, before and after it
in turn; overheads are medians of the ratios of such pairs, with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import Tensor
from train_step import matmul_peak

from ardistill.core.history import History, attach_history
from ardistill.planning import transformer_config
from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import knots_from_scheduler


def interval(ratios: list[float], resamples: int = 2000) -> list[float]:
    """95 % percentile bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(resamples))
    return [medians[int(0.025 * resamples)], medians[int(0.975 * resamples)]]


class Buffered(History):
    """Keys and values of all steps in one buffer made at the first, instead of concatenated at each: M4, no text."""

    def attend(  # type: ignore[override]
        self, layer: int, gate: None, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        assert self.layout is not None and self.layout.cache is not None
        rows, heads, tokens, dim = key.shape
        buffers: Any = self.layout.cache
        if self.layout.step == 0:
            buffers[layer] = [key.new_empty(rows, heads, 4 * tokens, dim) for _ in range(2)]
        seen = slice((self.layout.step + 1) * tokens)
        for buffer, new in zip(buffers[layer], (key, value), strict=True):
            buffer[:, :, self.layout.step * tokens : seen.stop] = new
        keys, values = (buffer[:, :, seen] for buffer in buffers[layer])
        return F.scaled_dot_product_attention(query, keys, values, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="DiT-XL/2")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--arms", nargs="+", help="only these, N=0 among them; all if not given")
    parser.add_argument("--json")
    args = parser.parse_args()
    config = transformer_config(args.architecture)
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(**{k: v for k, v in config.items() if k != "_class_name"}).eval()
    knots = knots_from_scheduler(DDIMScheduler(), 4)
    depth = config["num_layers"]
    noise, condition = torch.randn(1, 4, 32, 32), {"class_labels": torch.tensor([207])}
    student = Student(transformer, StudentConfig(knots, depth))
    modules = [module for block in student.family.blocks(transformer) for module in block]
    classes = [type(module) for module in modules]

    def lay(layers: int, mask: str) -> None:
        """Give the lowest ``layers`` a history and take it from the others, on the same weights."""
        for module in modules:
            module.__class__ = classes[0].__mro__[2]
        kind = "M4" if mask in ("buffers", "gated") else mask
        student.history = attach_history(modules[:layers], kind, gated=mask == "gated")
        if mask == "buffers":
            student.history.__class__ = Buffered

    def draw(layers: int, mask: str, dtype: torch.dtype) -> Callable[[], None]:
        def run() -> None:
            lay(layers, mask)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                sample(student, noise, condition)

        return run

    arms = {"N=0": draw(0, "M4", torch.float32)}
    arms |= {
        f"N={n} {mask}": draw(n, mask, torch.float32) for n in (6, depth) for mask in ("M1", "M2", "M3", "M4", "gated")
    }
    arms |= {f"N={depth} buffers": draw(depth, "buffers", torch.float32)}
    arms |= {"bf16 N=0": draw(0, "M4", torch.bfloat16), "bf16 N=6 M4": draw(6, "M4", torch.bfloat16)}
    arms = {name: run for name, run in arms.items() if not args.arms or name in args.arms}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    ratios: dict[str, list[float]] = {name: [] for name in arms}

    def timed(name: str) -> float:
        began = time.perf_counter()
        arms[name]()
        seconds[name].append(time.perf_counter() - began)
        return seconds[name][-1]

    for name in arms:
        timed(name)  # warm-up
        seconds[name].clear()
    for index in range(args.rounds):
        for name in arms:
            base = "bf16 N=0" if name.startswith("bf16") else "N=0"
            if name != base:
                pair = (base, name) if index % 2 else (name, base)
                took = {arm: timed(arm) for arm in pair}
                ratios[name].append(took[name] / took[base])
        print(f"round {index + 1}", flush=True)
    rows = {}
    for name, times in seconds.items():
        rows[name] = {"ms": 1000 * statistics.median(times)}
        if ratios[name]:
            low, high = interval(ratios[name])
            rows[name] |= {"overhead": statistics.median(ratios[name]) - 1, "low": low - 1, "high": high - 1}
    noisy, both = torch.full((2,), 500.0), {"class_labels": torch.tensor([207, 1000])}  # a class, and no class
    lay(0, "M4")
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(25):  # noise, class and no class side by side
            student.family.call(transformer, noise.repeat(2, 1, 1, 1), noisy, both)
    teacher_ms = 1000 * (time.perf_counter() - began)
    flops = 2 * 474.67e9 if args.architecture == "DiT-XL/2" else None
    facts = {
        "architecture": args.architecture,
        "threads": torch.get_num_threads(),
        "share_of_matmul_peak": flops and flops / (rows["N=0"]["ms"] / 1000) / matmul_peak(),
        "teacher_25_guided_steps_ms": teacher_ms,
        "arms": rows,
    }
    print(f"teacher     {teacher_ms:9.0f} ms  25 guided steps")
    for name, row in rows.items():
        more = f"  {row['overhead']:+.2%} [{row['low']:+.2%}, {row['high']:+.2%}]" if "low" in row else ""
        print(f"{name:<12}{row['ms']:9.0f} ms{more}")
    if args.json:
        Path(args.json).write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
