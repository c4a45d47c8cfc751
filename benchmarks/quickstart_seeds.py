"""The quickstart at several seeds: mean and spread of every metric, and the tables of docs/results.md and README.md.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 --out benchmarks/results/quickstart.json

A seed decides the training noise, the held-out noise and the order of the batches. Each run resumes if it was killed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

from ardistill import QuickstartConfig, quickstart
from ardistill.evaluation import arm_label
from ardistill.training import environment

LABELS = {
    "teacher": "teacher, 24 guided steps",
    "solver": "the teacher's solver, 4 guided steps",
    "solver_1": "the teacher's solver, 1 guided step",
    "kd": "KD, 1 step",
    "step_distillation": "step distillation, 4 steps",
    "ard": "ARD, 4 steps, N = 7 of 7 layers",
}
COLUMNS = {"fd": 3, "fd_to_teacher": 3, "accuracy": 3, "feature_distance_to_teacher": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/quickstart_seeds")
    parser.add_argument("--out", default="benchmarks/results/quickstart.json")
    args = parser.parse_args()
    runs, seconds = {}, {}
    for seed in args.seeds:
        began = time.time()
        runs[seed] = quickstart(replace(QuickstartConfig(), out=f"{args.runs}/{seed}", seed=seed)).to_dict()
        seconds[seed] = round(time.time() - began)
    arms = {}
    for arm in runs[args.seeds[0]]["arms"]:
        values = [run["arms"][arm] for run in runs.values()]
        arms[arm] = {
            name: {"mean": statistics.mean(found), "spread": max(found) - min(found)}
            for name in values[0]
            if (found := [value[name] for value in values]) and name != "seeds"
        }
    summary = {
        "seeds": args.seeds,
        "seconds": seconds,
        "real_floor": statistics.mean(run["real_floor"] for run in runs.values()),
        "arms": arms,
        "ard_minus_step_distillation": {seed: run["paired_with_baseline"]["ard"] for seed, run in runs.items()},
        "environment": environment(),
        "runs": runs,
    }
    Path(args.out).write_text(json.dumps(summary, indent=1) + "\n")
    print("\n".join([*table(summary), "", *readme_table(summary)]))


def table(summary: dict) -> list[str]:
    """The table of docs/results.md: mean and, in brackets, largest minus smallest over the seeds."""
    lines = ["| arm | FD | FD to teacher | accuracy | distance to teacher | NFE |", "|---|---|---|---|---|---|"]
    for arm, figures in summary["arms"].items():
        cells = [f"{figures[k]['mean']:.{n}f} ({figures[k]['spread']:.{n}f})" for k, n in COLUMNS.items()]
        lines.append(f"| {LABELS.get(arm, arm_label(arm))} | {' | '.join(cells)} | {figures['nfe']['mean']:g} |")
    return lines


def readme_table(summary: dict) -> list[str]:
    """The table of README.md: what a user gets, as means over the seeds."""
    lines = ["| | evaluations | images per second | FD to the data |", "|---|---|---|---|"]
    for arm in ("teacher", "solver", "step_distillation", "ard"):
        nfe, ms, fd = (summary["arms"][arm][key]["mean"] for key in ("nfe", "ms_per_image", "fd"))
        lines.append(f"| {LABELS[arm].partition(', N =')[0]} | {nfe:g} | {1000 / ms:.2g} | {fd:.3f} |")
    return lines


if __name__ == "__main__":
    main()
