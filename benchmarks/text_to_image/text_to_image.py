"""Text to image: compare teacher, solvers, step distillation and ARD on the same prompts and noise.

    OMP_WAIT_POLICY=passive python benchmarks/text_to_image/text_to_image.py [--only REGEX] [--threads 1]

Arms are trained as recipes/study_scenes.yaml says. An interrupted arm is resumed, an arm with a file in results/ is
skipped. FD and adherence are measured on 4,600 prompts: 2,400 seen, 1,600 of unseen combinations, 600 in unseen
wordings. --summary makes summary.json, docs/text-to-image-results.md and its picture from the results alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from summary import HANDED_OVER, HANDOVERS, RECIPE, RESULTS, SHOWN, SPLITS, summarise
from torch import Tensor
from tqdm import tqdm

from ardistill import Teacher
from ardistill.evaluation import (
    FeatureStatistics,
    Judge,
    Sampler,
    extract_features,
    frechet_distance,
    paired_distance,
)
from ardistill.evaluation.adherence import check_adherence, scores
from ardistill.families import Condition
from ardistill.files import write_whole
from ardistill.files.pixels import to_bytes
from ardistill.studies import Study
from ardistill.training import environment
from ardistill.training.real_images import save_real
from ardistill.trajectories import knot_indices, select_knots
from ardistill.zoo.scenes.data import CATEGORIES, Prompt, as_images, caption, example, prompts
from ardistill.zoo.scenes.detector import load_detector

SHARD = 100
"""Images drawn at once."""
SOLVER_STEPS = 24
"""Steps of the teacher's solver."""
REAL = 8192
"""Captioned renders that a discriminator learns from."""
Draw = Callable[[Tensor, Condition], Tensor]
"""(noise, condition) -> latents or pixels."""


def shards(count: int) -> list[slice]:
    """Rows that are drawn at once."""
    return [slice(start, start + SHARD) for start in range(0, count, SHARD)]


@dataclass(frozen=True)
class HeldOut:
    """A split of held-out prompts with their noise and the teacher's images, one row per prompt."""

    prompts: list[Prompt]
    noise: Tensor
    condition: Condition
    images: Tensor
    """The teacher's images, in [-1, 1]."""
    features: Tensor
    """Features of these images, which all arms are compared with."""
    renders: FeatureStatistics
    """Statistics of one real render per prompt."""
    fd_floor: float
    """FD of real renders of other prompts to these renders."""

    def batches(self) -> tuple[list[Tensor], list[Condition]]:
        """Noise and conditions of each shard."""
        parts = shards(len(self.noise))
        return [self.noise[rows] for rows in parts], [{k: x[rows] for k, x in self.condition.items()} for rows in parts]


class Bench:
    """The held-out prompts with their noise, the teacher's images, and the networks that judge all arms."""

    def __init__(self, recipe: Path) -> None:
        self.study, self.judge, self.detector = Study(recipe), Judge.zoo("scenes"), load_detector()

    @property
    def teacher(self) -> Teacher:
        return self.study.teacher

    @cached_property
    def solvers(self) -> dict[str, tuple[Draw | None, int]]:
        return solvers(self.teacher, self.study.recipe.distill["knots"])

    @cached_property
    def sets(self) -> dict[str, HeldOut]:
        """Split -> prompts, noise and the teacher's images, which are drawn once and then read."""
        found = {}
        drawn_by = f"{self.teacher.fingerprint()[:16]}-guidance-{self.teacher.guidance_scale:g}"
        for number, (split, count) in enumerate(SPLITS.items()):
            asked = prompts(split, count)
            condition = self.teacher.encode([x.text for x in asked])
            parts = shards(count)
            noise = torch.cat([self.teacher.noise(2000 + number, i, SHARD) for i in range(len(parts))])
            solve, images = Sampler.of_teacher(self.teacher, SOLVER_STEPS).draw, []
            for i, rows in enumerate(tqdm(parts, desc=f"teacher, {split}")):
                path = self.study.out / "held_out" / f"{drawn_by}-{split}-{i}.safetensors"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    drawn = self.teacher.decode(solve(noise[rows], {k: x[rows] for k, x in condition.items()}))
                    temporary = path.with_suffix(f".{os.getpid()}")
                    save_file({"images": drawn.contiguous()}, temporary)
                    temporary.replace(path)
                images.append(load_file(path)["images"])
            exact = torch.cat(images)
            features = extract_features(self.judge.network, exact)
            renders, others = self.renders(split, 1), self.renders(split, 2)
            floor = frechet_distance(renders, others)
            found[split] = HeldOut(asked, noise, condition, exact, features, renders, floor)
        return found

    def renders(self, split: str, seed: int) -> FeatureStatistics:
        """Statistics of real renders, as many as the split has prompts; seed 1 gives the split's own prompts."""
        scenes = [example(split, i, seed)[0] for i in range(SPLITS[split])]
        return FeatureStatistics.from_features(extract_features(self.judge.network, as_images(scenes)))

    def write_real(self) -> None:
        """Write captioned renders for the discriminator, from the teacher's training set, unless they are there."""
        path = Path(self.study.recipe.finetune["real"])
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            scenes, captions = zip(*(caption(0, i) for i in range(REAL)), strict=True)
            save_real(path, as_images(scenes), self.teacher.encode([x.text for x in captions]))

    def evaluate(self, draw: Draw | None) -> tuple[dict[str, Any], Tensor]:
        """Figures of an arm for each split, and its first seen images.

        Args:
            draw: Draws the arm's samples; None for the teacher, whose images are there.
        """
        found: dict[str, Any] = {}
        for split, held_out in self.sets.items():
            drawn, theirs = held_out.images, held_out.features
            if draw is not None:
                drawn = self.teacher.decode(torch.cat(list(map(draw, *held_out.batches()))))
            ours = theirs if draw is None else extract_features(self.judge.network, drawn)
            verdicts = check_adherence(self.detector, drawn, held_out.prompts)
            statistics = FeatureStatistics.from_features(ours)
            found[split] = {
                "fd": frechet_distance(held_out.renders, statistics),
                "fd_floor": held_out.fd_floor,
                "fd_to_teacher": frechet_distance(FeatureStatistics.from_features(theirs), statistics),
                "distance_to_teacher": paired_distance(ours, theirs).mean,
                "adherence": [asdict(x) for x in scores(verdicts, held_out.prompts, split)],
                "verdicts": "".join(str(int(x)) for x in verdicts),
            }
            if split == "seen":
                shown = drawn[: SHOWN * len(CATEGORIES)]
        return found, shown


def solvers(teacher: Teacher, knots: Sequence[int]) -> dict[str, tuple[Draw | None, int]]:
    """Arms of the teacher with few-step solvers.

    Args:
        teacher: At its guidance scale.
        knots: Knots of the students, for ``euler-4-knots``.

    Returns:
        Arm -> its draw function (None for the teacher's full solver) and network evaluations, two per guided step.
    """
    found: dict[str, tuple[Draw | None, int]] = {"teacher": (None, 2 * SOLVER_STEPS)}
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}
    for steps in (4, 8):
        dpm_solver = DPMSolverMultistepScheduler.from_config(teacher.scheduler.config, **options)
        found[f"euler-{steps}"] = Sampler.of_teacher(teacher, steps).draw, 2 * steps
        found[f"dpm-solver-{steps}"] = Sampler.of_scheduler(teacher, dpm_solver, steps).draw, 2 * steps
    uneven = select_knots(teacher.knots(SOLVER_STEPS), knots)
    found["euler-4-knots"] = lambda noise, condition: teacher.solve_ode(noise, condition, uneven).states[:, -1], 8
    return found


def run(bench: Bench, name: str) -> tuple[dict[str, Any], Tensor]:
    """Figures of an arm and its first images; an arm of the recipe is trained first."""
    began = time.time()
    facts: dict[str, Any] = {"name": name, "teacher": bench.teacher.fingerprint(), "environment": environment()}
    if name in bench.study.recipe.arms:
        if "finetune" in bench.study.recipe.options(name):
            bench.write_real()
        student = bench.study.student(name)
        draw, facts["nfe"] = Sampler.of_student(student).draw, student.num_steps
        facts["options"] = bench.study.recipe.options(name)
    else:
        draw, facts["nfe"] = bench.solvers[name]
    facts["seconds"] = round(time.time() - began)
    found, shown = bench.evaluate(draw)
    return facts | {"splits": found}, shown


@torch.no_grad()
def handovers(bench: Bench, name: str) -> dict[str, dict[str, float]]:
    """Adherence and FD when teacher and student share the steps: one draws up to a state, the other continues.

    This shows in which steps the student loses quality.
    """
    student, held_out, teacher = bench.study.student(name), bench.sets["seen"], bench.teacher
    solver = teacher.knots(SOLVER_STEPS)
    indices = knot_indices(solver, student.config.knots)
    drawn: dict[str, list[Tensor]] = {}
    for noise, condition in islice(zip(*held_out.batches(), strict=True), HANDED_OVER // SHARD):
        exact = teacher.solve_ode(noise, condition, solver).states[:, indices]
        for first in range(student.num_steps):
            states, cache = [*exact.unbind(1)[: first + 1]], {}
            for step in range(student.num_steps):
                following = student.next_input(student.step(states[step], step, condition, cache), noise, step)
                states += [following] if step >= first else []
            drawn.setdefault(f"teacher to state {indices[first]}, then student", []).append(states[-1])
            if first == 0:
                rest = select_knots(solver, range(indices[1], SOLVER_STEPS + 1))
                continued = teacher.solve_ode(states[1], condition, rest).states[:, -1]
                drawn.setdefault(f"student to state {indices[1]}, then teacher", []).append(continued)
        drawn.setdefault("teacher", []).append(exact[:, -1])
    images = {who: teacher.decode(torch.cat(parts)) for who, parts in drawn.items()}
    statistics = {
        who: FeatureStatistics.from_features(extract_features(bench.judge.network, x)) for who, x in images.items()
    }
    return {
        who: {
            "adherence": float(check_adherence(bench.detector, x, held_out.prompts[: len(x)]).float().mean()),
            "fd_to_teacher": frechet_distance(statistics["teacher"], statistics[who]),
        }
        for who, x in images.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".*", help="arms whose names match")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--handovers", action="store_true", help="measure handovers of the matching arms, which must be trained"
    )
    parser.add_argument("--summary", action="store_true", help="write the summary of the results, and end")
    args = parser.parse_args()
    if args.summary:
        summarise()
        return
    torch.set_num_threads(args.threads)
    bench = Bench(RECIPE)
    RESULTS.mkdir(exist_ok=True)
    if args.handovers:
        arms = [x for x in bench.study.recipe.arms if re.fullmatch(args.only, x)]
        found = json.loads(HANDOVERS.read_text()) if HANDOVERS.exists() else {}
        found |= {name: handovers(bench, name) for name in arms}
        write_whole(HANDOVERS, (json.dumps(found, indent=1) + "\n").encode())
        return
    for name in [*bench.solvers, *bench.study.recipe.arms]:
        path = RESULTS / f"{name}.json"
        if not re.fullmatch(args.only, name) or path.exists():
            continue
        found, shown = run(bench, name)
        Image.fromarray(torch.cat(list(to_bytes(shown)), -1).permute(1, 2, 0).numpy()).save(RESULTS / f"{name}.png")
        write_whole(path, (json.dumps(found) + "\n").encode())
        seen = found["splits"]["seen"]
        print(f"{name}: FD to teacher {seen['fd_to_teacher']:.4f}, adherence {seen['adherence'][-1]['share']:.4f}")


if __name__ == "__main__":
    main()
