"""How fast gates learn, and what a step sees of earlier ones: a closed list of trainings at equal training FLOPs.

    python benchmarks/gates.py [--runs runs/gates] [--json benchmarks/results/gates.json] [--only fashion/short/0]

Every arm trains on the same recorded trajectories, with the same seed, for as many multiply-accumulates as
gated history with mask M4 in all layers takes; the others get more steps. ``short`` is the quickstart's length,
``long`` 1,000 steps. A finished training is not repeated, and the file is written after each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ardistill.config import TrainingConfig
from ardistill.evaluation import FeatureStatistics, Judge, extract_features, frechet_distance
from ardistill.evaluation.cost import count_macs
from ardistill.files import write_whole
from ardistill.student import Student, sample
from ardistill.teacher import Teacher
from ardistill.training import distill, environment
from ardistill.trajectories import TrajectoryDataset, record


class Zoo(NamedTuple):
    """An embedded teacher as the studies and the quickstart use it."""

    guidance_scale: float
    knots: tuple[int, ...]
    layers: int


class Length(NamedTuple):
    """How long the arm that costs most is trained."""

    steps: int
    batch_size: int


ZOO = {"fashion": Zoo(1.25, (0, 6, 15, 21, 24), 7), "emoji": Zoo(1.0, (0, 6, 12, 18, 24), 7)}
LENGTHS = {"short": Length(120, 64), "long": Length(1000, 16)}
ARMS: dict[str, tuple[str, str, float]] = {
    "N=0": ("none", "M4", 1.0),
    "N=all M4, common rate": ("all", "M4", 1.0),
    "N=all M4, rate x30": ("all", "M4", 30.0),
    "N=all M2, rate x30": ("all", "M2", 30.0),
    "N=1/4 M4, rate x30": ("quarter", "M4", 30.0),
    "N=1/4 M2, rate x30": ("quarter", "M2", 30.0),
}
"""Arm -> layers with history, mask, learning rate of the gates over the common one."""
LIST = [
    (zoo, length, seed, arm)
    for arms in ([*ARMS][:4], [*ARMS][4:])
    for length in LENGTHS
    for seed in range(3)
    for zoo in ZOO
    for arm in arms
]
"""Every training, in the order in which they are done."""


def student_of(arm: str, teacher: Teacher, data: TrajectoryDataset, zoo: Zoo) -> Student:
    layers, mask, _ = ARMS[arm]
    count = {"none": 0, "all": zoo.layers, "quarter": max(1, zoo.layers // 4)}[layers]
    return Student.from_teacher(teacher, data.student_config(history_layers=count, mask=mask))


def macs(student: Student, data: TrajectoryDataset) -> float:
    """Multiply-accumulates of one folded pass of one trajectory; training takes three times as many."""
    states, _, condition = data.stacked(slice(1))
    return count_macs(lambda: student(states[:, :-1], condition))


def measured(student: Student, held_out: TrajectoryDataset, teacher: Teacher, judge: Judge) -> dict[str, Any]:
    """Distances to the teacher's own images from the same noise."""
    states, _, condition = held_out.stacked()
    drawn = torch.cat(
        [
            sample(student, states[i : i + 250, 0], {k: v[i : i + 250] for k, v in condition.items()})[:, -1]
            for i in range(0, len(states), 250)
        ]
    )
    ours, theirs = (extract_features(judge.network, teacher.decode(x)) for x in (drawn, states[:, -1]))
    statistics = [FeatureStatistics.from_features(x) for x in (ours, theirs)]
    gates = [round(float(p.detach()), 4) for name, p in student.named_parameters() if name.endswith("history_gate")]
    return {
        "fd_to_teacher": frechet_distance(*statistics),
        "distance_to_teacher": float((ours - theirs).norm(dim=1).mean()),
        "squared_error": float((drawn - states[:, -1]).square().mean()),
        "gates": gates,
    }


def run_one(zoo_name: str, length: str, seed: int, arm: str, runs: Path) -> dict[str, Any]:
    """Train and measure one student."""
    zoo, teacher = (
        ZOO[zoo_name],
        Teacher.from_pretrained(f"zoo/{zoo_name}", guidance_scale=ZOO[zoo_name].guidance_scale),
    )
    folders = {}
    for name, count, base in (("train", 4096, 0), ("held_out", 1000, 1000)):
        folders[name] = runs / zoo_name / name
        record(teacher, folders[name], count, num_steps=(4, 8), seed=base)
    data, held_out = (TrajectoryDataset(folder, zoo.knots, teacher.fingerprint()) for folder in folders.values())
    judge = Judge.zoo(zoo_name)
    dearest = macs(student_of("N=all M4, common rate", teacher, data, zoo), data)
    student = student_of(arm, teacher, data, zoo)
    steps = round(LENGTHS[length].steps * dearest / macs(student, data))
    training = TrainingConfig(
        max_steps=steps,
        batch_size=LENGTHS[length].batch_size,
        learning_rate=5e-4,
        gate_rate=ARMS[arm][2],
        lr_scheduler="cosine",
        lr_warmup_steps=10,
        ema_decay=0.98,
        seed=seed,
        checkpoint_every=200,
        keep_checkpoints=1,
        tracker=None,
    )
    began = time.time()
    trained = distill(student, data, runs / zoo_name / f"{length}-{seed}-{[*ARMS].index(arm)}", training)
    return measured(trained, held_out, teacher, judge) | {"steps": steps, "seconds": time.time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gates"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gates.json"))
    parser.add_argument("--only", nargs="+", help="rows such as fashion/short/0; all if not given")
    args = parser.parse_args()
    results = json.loads(args.json.read_text())["runs"] if args.json.is_file() else {}
    for zoo, length, seed, arm in LIST:
        key = f"{zoo}/{length}/{seed}/{arm}"
        if key not in results and (not args.only or f"{zoo}/{length}/{seed}" in args.only):
            results[key] = run_one(zoo, length, seed, arm, args.runs)
            write_whole(args.json, json.dumps({"environment": environment(), "runs": results}, indent=1).encode())
            print(key, {k: v for k, v in results[key].items() if k != "gates"}, flush=True)


if __name__ == "__main__":
    main()
