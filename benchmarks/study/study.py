"""Run the study's list, one after the other; each resumes if it was killed, and is left out once its result is there.

    OMP_WAIT_POLICY=passive python benchmarks/study/study.py [--only REGEX] [--threads 1] [--out FOLDER]

Two at once, single-threaded, take less time than one after the other on two threads.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import torch
from runs import DEFAULT, RUNS

from ardistill import Student, StudentConfig, Teacher, TrainingConfig, TrajectoryDataset, distill, record
from ardistill.evaluation import Judge, Sampler, compare, exposure_bias, extract_features, paired_distance
from ardistill.training import environment

GUIDANCE, NUM_EVAL = 1.25, 2000


def data(teacher: Teacher, runs: Path, num_steps: int) -> tuple[TrajectoryDataset, TrajectoryDataset]:
    """Trajectories to train on and held out, recorded if they are not there."""
    for name, count, seed in (("train", DEFAULT["num_trajectories"], 0), ("eval", NUM_EVAL, 1000)):
        record(teacher, runs / "trajectories" / name, count, num_steps=(1, 2, 4, 8), seed=seed)
    found = [TrajectoryDataset(runs / "trajectories" / name, num_steps) for name in ("train", "eval")]
    return found[0], found[1]


def evaluate(student: Student, teacher: Teacher, held_out: TrajectoryDataset) -> dict:
    """Figures of one student on the held-out noises, each sample's distance to the teacher, and the error per step."""
    states, denoised, condition = held_out.stacked()
    images, judge = teacher.decode(states[:, -1]), Judge.fashion()
    found = compare(teacher, images, {"student": Sampler.of_student(student)}, states[:, 0], condition, judge)
    features = [extract_features(judge.network, found.images[arm]) for arm in ("student", "teacher")]
    first = slice(200)
    return {
        "figures": found.arms["student"],
        "teacher": found.arms["teacher"],
        "floor": found.floor,
        "error_per_step": exposure_bias(student, teacher, states[first], denoised[first], held_out.condition(first)),
        "distances": [round(x, 5) for x in paired_distance(*features).values.tolist()],
    }


def run(name: str, runs: Path) -> dict:
    """Train and evaluate one run of the list."""
    options = DEFAULT | RUNS[name]
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=GUIDANCE)
    train, held_out = data(teacher, runs, options["num_steps"])
    config = StudentConfig.for_data(
        train, **{key: options[key] for key in ("history_layers", "mask", "target", "output")}
    )
    torch.manual_seed(options["seed"])
    student = Student.from_teacher(teacher, config)
    training = TrainingConfig(
        max_steps=options["max_steps"],
        batch_size=256 // options["num_steps"],
        learning_rate=5e-4,
        lr_scheduler="cosine",
        lr_warmup_steps=10,
        ema_decay=0.98,
        inputs=options["inputs"],
        seed=options["seed"],
        checkpoint_every=100,
        tracker=None,
    )
    began = time.time()
    student = distill(student, train, runs / name, training)
    return {"name": name, "options": options, "seconds": round(time.time() - began)} | evaluate(
        student, teacher, held_out
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default="runs/study", help="folder of trajectories and checkpoints")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in RUNS:
        path = out / f"{name}.json"
        if not re.fullmatch(args.only, name) or path.exists():
            continue
        print(f"== {name}", flush=True)
        found = run(name, Path(args.runs)) | {"environment": environment()}
        path.with_suffix(".tmp").write_text(json.dumps(found) + "\n")
        path.with_suffix(".tmp").replace(path)
        figures = found["figures"]
        print(f"{name}: FD to teacher {figures['fd_to_teacher']:.4f}, FD {figures['fd']:.4f}", flush=True)


if __name__ == "__main__":
    main()
