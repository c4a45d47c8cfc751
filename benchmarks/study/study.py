"""Run the arms of a study one after the other; an interrupted arm is resumed, an arm with a result is skipped.

    OMP_WAIT_POLICY=passive python benchmarks/study/study.py [--recipe FILE] [--only REGEX] [--threads 1]

On two cores, two single-threaded processes are faster than one with two threads. Arms with a discriminator need the
data set's images, written once (the emoji world is rendered, Fashion-MNIST is read from its IDX files):

    python benchmarks/study/study.py --recipe recipes/study_emoji.yaml --write_real
    python benchmarks/study/study.py --write_real FOLDER_OF_IDX_FILES
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ardistill import Student, Teacher, TrajectoryDataset
from ardistill.evaluation import (
    FeatureStatistics,
    Judge,
    Sampler,
    compare_samplers,
    exposure_bias,
    extract_features,
    frechet_distance,
    paired_distance,
)
from ardistill.files import write_whole
from ardistill.studies import Study
from ardistill.training import environment
from ardistill.training.real_images import save_real
from ardistill.zoo.emoji.data import load_emoji
from ardistill.zoo.fashion.data import load_fashion_mnist

HERE = Path(__file__).parent
RECIPES = HERE.parent.parent / "recipes"


def judge_of(teacher: Teacher) -> Judge:
    """The judge of an embedded teacher."""
    return Judge.zoo(teacher.name.removeprefix("zoo/"))


def fd_held_out(judge: Judge, features: Tensor) -> float:
    """FD of features to the real images of the held-out split."""
    real = FeatureStatistics.from_features(judge.held_out_features)
    return frechet_distance(real, FeatureStatistics.from_features(features))


def follow(teacher: Teacher, held_out: TrajectoryDataset, path: Path) -> Callable[[Student, int], None]:
    """A ``validate`` that appends the EMA student's FD to the teacher, on 1,000 noises, to a file of JSON lines."""
    states, _, condition = held_out.stacked(slice(1000))
    network = judge_of(teacher).network

    def statistics(latents: Tensor) -> FeatureStatistics:
        return FeatureStatistics.from_features(extract_features(network, teacher.decode(latents)))

    expected = statistics(states[:, -1])

    def note(student: Student, step: int) -> None:
        drawn = Sampler.of_student(student).draw(states[:, 0], condition)
        point = {"step": step, "fd_to_teacher": frechet_distance(expected, statistics(drawn))}
        with open(path, "a") as file:
            file.write(json.dumps(point) + "\n")

    return note


def evaluate(student: Student, teacher: Teacher, held_out: TrajectoryDataset) -> dict[str, Any]:
    """Figures of a student on the held-out noises, distances of its samples to the teacher's, and errors per step."""
    states, denoised, condition = held_out.stacked()
    images, judge = teacher.decode(states[:, -1]), judge_of(teacher)
    found = compare_samplers(teacher, images, {"student": Sampler.of_student(student)}, states[:, 0], condition, judge)
    features = [extract_features(judge.network, found.images[arm]) for arm in ("student", "teacher")]
    first = slice(200)
    return {
        "figures": found.arms["student"] | {"fd_held_out": fd_held_out(judge, features[0])},
        "teacher": found.arms["teacher"] | {"fd_held_out": fd_held_out(judge, features[1])},
        "floor": found.floor,
        "error_per_step": exposure_bias(
            student, teacher, states[first], denoised[first], held_out.condition(first), held_out.manifest.knots
        ),
        "distances": [round(x, 5) for x in paired_distance(*features).values.tolist()],
    }


def run(study: Study, name: str) -> dict[str, Any]:
    """Train and evaluate one arm."""
    began, curve = time.time(), study.out / f"{name}.curve.jsonl"
    student = study.student(name, validate=follow(study.teacher, study.held_out(1), curve))
    facts = {"name": name, "options": study.recipe.options(name), "seconds": round(time.time() - began)}
    lines = curve.read_text().splitlines() if curve.exists() else []  # no file if another command trained it
    points = {point["step"]: point for point in map(json.loads, lines)}  # the last one of a step that was repeated
    held_out = study.held_out(student.config.knots)
    return facts | {"curve": [points[step] for step in sorted(points)]} | evaluate(student, study.teacher, held_out)


def write_real(study: Study, folder: str) -> None:
    """Write images of the data set that the study's teacher was trained on.

    Args:
        study: Its folder takes the file.
        folder: Folder of the IDX files of Fashion-MNIST; unused for the emoji world.
    """
    if study.teacher.name == "zoo/emoji":
        images, facts = load_emoji(0, 20_000)
        labels = facts[:, 0]
    else:
        images, labels = load_fashion_mnist(folder, "train")
    study.out.mkdir(parents=True, exist_ok=True)
    save_real(study.out / "real.safetensors", images, {"class_labels": labels})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(RECIPES / "study_fashion.yaml"))
    parser.add_argument("--only", default=".*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--results", type=Path, help="folder of the results; results/NAME beside this file if not given"
    )
    parser.add_argument("--write_real", metavar="FOLDER", nargs="?", const="", help="write real.safetensors and end")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study = Study(args.recipe)
    if args.write_real is not None:
        write_real(study, args.write_real)
        return
    out = args.results or HERE / "results" / Path(args.recipe).stem.removeprefix("study_")
    out.mkdir(parents=True, exist_ok=True)
    for name in study.recipe.arms:
        path = out / f"{name}.json"
        if not re.fullmatch(args.only, name) or path.exists():
            continue
        print(f"== {name}", flush=True)
        found = run(study, name) | {"environment": environment()}
        write_whole(path, (json.dumps(found) + "\n").encode())
        figures = found["figures"]
        print(f"{name}: FD to teacher {figures['fd_to_teacher']:.4f}, FD {figures['fd']:.4f}", flush=True)


if __name__ == "__main__":
    main()
