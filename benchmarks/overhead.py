"""What history costs where Python is all there is: a tiny model, batch 1, one thread.

    python benchmarks/overhead.py [--rounds 40] [--json benchmarks/results/overhead.json]

Processor time of a 4-step sample with history in all 8 layers over one without. Each run stands beside a run of the
baseline, before and after it in turn; overheads are medians of the ratios of such pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import knots_from_scheduler
from ardistill.training import environment

SIZE = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 8, "sample_size": 8}
ARMS = {
    "N=0": (0, "M4", True),
    "gated, M4": (8, "M4", True),
    "gated, M2": (8, "M2", True),
    "one softmax, M4": (8, "M4", False),
    "one softmax, M2": (8, "M2", False),
}
"""Arm -> layers with history, mask, whether gated."""


def student(layers: int, mask: str, gated: bool) -> Student:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(**SIZE, in_channels=4, out_channels=8, num_embeds_ada_norm=10)
    return Student(
        transformer, StudentConfig(knots_from_scheduler(DDIMScheduler(), 4), layers, mask, gated=gated)
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    arms = {name: student(*facts) for name, facts in ARMS.items()}
    noise, condition = torch.randn(1, 4, 8, 8), {"class_labels": torch.tensor([1])}

    def seconds(name: str) -> float:
        began = time.process_time()
        for _ in range(5):
            sample(arms[name], noise, condition)
        return (time.process_time() - began) / 5

    for name in arms:
        seconds(name)
    base, ratios = [], {name: [] for name in arms if name != "N=0"}
    for index in range(args.rounds):
        for name, found in ratios.items():
            pair = ("N=0", name) if index % 2 else (name, "N=0")
            took = {arm: seconds(arm) for arm in pair}
            base.append(took["N=0"])
            found.append(took[name] / took["N=0"])
    overheads = {name: statistics.median(found) - 1 for name, found in ratios.items()}
    facts = {"milliseconds_without_history": 1000 * statistics.median(base), "overheads": overheads}
    print(json.dumps(facts, indent=1))
    if args.json:
        args.json.write_text(json.dumps(facts | {"environment": environment("cpu")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
