"""Text to image: teacher, its solvers, step distillation and ARD on the same prompts and noise, by FD and adherence.

    OMP_WAIT_POLICY=passive python benchmarks/text_to_image/text_to_image.py [--only REGEX] [--threads 1]

Arms are trained as recipes/study_scenes.yaml says and resume if they were killed; an arm whose result is in results/ is
left out. Drawn are 4,600 prompts from noise of their own: 2,400 seen, 1,600 of unseen combinations, 600 in unseen
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

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ardistill import Teacher
from ardistill.evaluation import (
    BootstrapInterval,
    FeatureStatistics,
    Judge,
    Sampler,
    extract_features,
    frechet_distance,
    paired_bootstrap,
    paired_distance,
    sample_grid,
)
from ardistill.evaluation.adherence import judge, scores
from ardistill.evaluation.report import markdown_table
from ardistill.families import Condition
from ardistill.files.store import write_whole
from ardistill.studies.study import Study
from ardistill.training import environment
from ardistill.training.real_images import save_real
from ardistill.zoo.scenes.data import CATEGORIES, Prompt, as_images, caption, example, prompts
from ardistill.zoo.scenes.detector import load_detector

HERE = Path(__file__).parent
RESULTS = HERE / "results"
HANDOVERS = RESULTS / "handovers.json"
RECIPE = HERE.parent.parent / "recipes" / "study_scenes.yaml"
DOCS = HERE.parent.parent / "docs"
SPLITS = {"seen": 2400, "unseen_combinations": 1600, "unseen_wordings": 600}
"""Split to held-out prompts, the categories in equal shares."""
SHARD = 100
SOLVER_STEPS = 24
REAL = 8192
"""Renders with their captions."""
FIGURES = {"fd": "FD", "fd_to_teacher": "FD to teacher", "distance_to_teacher": "distance to teacher"}
COMPARED = [
    ("n6-gated", "n0"),
    ("n6-gated", "teacher"),
    ("n0", "teacher"),
    ("adversarial-n6-gated", "teacher"),
    ("n6-gated", "euler-8"),
    ("n6-gated", "euler-4-knots"),
    ("n6-gated-long", "n0-long"),
    ("n6-gated-long", "teacher"),
    ("n6-gated-long", "n6-gated"),
    ("n6-gated-s3", "n0-s3"),
    ("n6-gated-s2", "n0-s2"),
]
"""Arms whose adherence is compared prompt by prompt."""
INTRODUCTION = """# Text to image, all figures

This page is written by `python benchmarks/text_to_image/text_to_image.py --summary` from the committed results beside
that script; a summary with its reading is in [Text to image](text-to-image.md). The arms are those of
`recipes/study_scenes.yaml`: `n0` is step distillation and `n6-gated` ARD with history in all six layers, `-s3` and
`-s2` have 3 and 2 steps, `kd` has one, `-long` is trained for 1,500 steps instead of 500, and `adversarial-...` is
trained against a discriminator after that, with its steps on top. `euler-4-knots` is the teacher's solver at the
students' knots, the other solvers run at uniform ones. Every arm draws the same prompts from the same noise. The
noise was never trained on; seen prompts are of the training distribution, and many of them (nearly all of one object)
are training captions word for word.

FD is measured in the features of the detector, to real renders of the same prompts (the floor: renders of as many
other prompts), and to the teacher's own 24 guided steps. Adherence is the share of images that show what their prompt
says and nothing else, as the detector sees it; the last row is the share of real renders that it judges correctly. In
round brackets: largest minus smallest over seeds. In square brackets: 95 % intervals over prompts, with arms paired
prompt by prompt and an arm's seeds averaged."""
HANDED_OVER = 600
"""First seen prompts that are drawn by teacher and student in turn."""
SHOWN = 2
"""Prompts of each category in the picture: the first ones."""
Draw = Callable[[Tensor, Condition], Tensor]


def shards(count: int) -> list[slice]:
    """Rows drawn at a time."""
    return [slice(start, start + SHARD) for start in range(0, count, SHARD)]


@dataclass(frozen=True)
class HeldOut:
    """One split, row by row."""

    prompts: list[Prompt]
    noise: Tensor
    condition: Condition
    images: Tensor
    """The teacher's, in [-1, 1]."""
    features: Tensor
    """Of these images: every arm is held against them."""
    renders: FeatureStatistics
    """Of real pictures of these prompts, one each."""
    fd_floor: float
    """Of real pictures of other prompts to these."""

    def batches(self) -> tuple[list[Tensor], list[Condition]]:
        parts = shards(len(self.noise))
        return [self.noise[rows] for rows in parts], [{k: x[rows] for k, x in self.condition.items()} for rows in parts]


class Bench:
    """The held-out prompts, their noise and what the teacher makes of them."""

    def __init__(self, recipe: Path) -> None:
        self.study, self.judge, self.detector = Study(recipe), Judge.zoo("scenes"), load_detector()

    @property
    def teacher(self) -> Teacher:
        return self.study.teacher

    @cached_property
    def solvers(self) -> dict[str, tuple[Draw | None, int]]:
        return solvers(self.teacher, self.study.facts["distill"]["knots"])

    @cached_property
    def sets(self) -> dict[str, HeldOut]:
        """Split -> what every arm draws from, and the teacher's own images; drawn if they are not there."""
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
        """Of real pictures of as many prompts as the split holds, one each; those of seed 1 are its own."""
        scenes = [example(split, i, seed)[0] for i in range(SPLITS[split])]
        return FeatureStatistics.from_features(extract_features(self.judge.network, as_images(scenes)))

    def write_real(self) -> None:
        """What a discriminator learns from, if it is not there: pictures of those that the teacher was trained on."""
        path = Path(self.study.facts["finetune"]["real"])
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            scenes, captions = zip(*(caption(0, i) for i in range(REAL)), strict=True)
            save_real(path, as_images(scenes), self.teacher.encode([x.text for x in captions]))

    def evaluate(self, draw: Draw | None) -> tuple[dict[str, Any], Tensor]:
        """Figures of one arm, split by split, and its first seen images; the teacher's without ``draw``."""
        found: dict[str, Any] = {}
        for split, held_out in self.sets.items():
            drawn, theirs = held_out.images, held_out.features
            if draw is not None:
                drawn = self.teacher.decode(torch.cat(list(map(draw, *held_out.batches()))))
            ours = theirs if draw is None else extract_features(self.judge.network, drawn)
            verdicts = judge(self.detector, drawn, held_out.prompts)
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
    """Arm -> how it draws, and evaluations of the network, two a guided step; ``knots`` are the students'."""
    found: dict[str, tuple[Draw | None, int]] = {"teacher": (None, 2 * SOLVER_STEPS)}
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}
    for steps in (4, 8):
        dpm_solver = DPMSolverMultistepScheduler.from_config(teacher.scheduler.config, **options)
        found[f"euler-{steps}"] = Sampler.of_teacher(teacher, steps).draw, 2 * steps
        found[f"dpm-solver-{steps}"] = Sampler.of_scheduler(teacher, dpm_solver, steps).draw, 2 * steps
    uneven = teacher.knots(SOLVER_STEPS).select(knots)
    found["euler-4-knots"] = lambda noise, condition: teacher.solve_ode(noise, condition, uneven).states[:, -1], 8
    return found


def run(bench: Bench, name: str) -> tuple[dict[str, Any], Tensor]:
    """Train an arm if it is one of the recipe's, and evaluate it."""
    began = time.time()
    facts: dict[str, Any] = {"name": name, "teacher": bench.teacher.fingerprint(), "environment": environment()}
    if name in bench.study.facts["arms"]:
        if "finetune" in bench.study.options(name):
            bench.write_real()
        student = bench.study.student(name)
        draw, facts["nfe"] = Sampler.of_student(student).draw, student.num_steps
        facts["options"] = bench.study.options(name)
    else:
        draw, facts["nfe"] = bench.solvers[name]
    facts["seconds"] = round(time.time() - began)
    found, shown = bench.evaluate(draw)
    return facts | {"splits": found}, shown


@torch.no_grad()
def handovers(bench: Bench, name: str) -> dict[str, dict[str, float]]:
    """Where a student loses what its teacher has: one of them draws to a state, the other goes on."""
    student, held_out, teacher = bench.study.student(name), bench.sets["seen"], bench.teacher
    solver = teacher.knots(SOLVER_STEPS)
    indices = solver.indices(student.config.knots)
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
                rest = solver.select(range(indices[1], SOLVER_STEPS + 1))
                continued = teacher.solve_ode(states[1], condition, rest).states[:, -1]
                drawn.setdefault(f"student to state {indices[1]}, then teacher", []).append(continued)
        drawn.setdefault("teacher", []).append(exact[:, -1])
    images = {who: teacher.decode(torch.cat(parts)) for who, parts in drawn.items()}
    statistics = {
        who: FeatureStatistics.from_features(extract_features(bench.judge.network, x)) for who, x in images.items()
    }
    return {
        who: {
            "adherence": float(judge(bench.detector, x, held_out.prompts[: len(x)]).float().mean()),
            "fd_to_teacher": frechet_distance(statistics["teacher"], statistics[who]),
        }
        for who, x in images.items()
    }


def results() -> dict[str, list[dict[str, Any]]]:
    """Arm -> what was found, over its seeds, in the order of the arms."""
    found: dict[str, list[dict[str, Any]]] = {}
    drawn = ["teacher", "dpm-solver-8", "dpm-solver-4", "euler-8", "euler-4", "euler-4-knots"]
    for name in [*drawn, *Study(RECIPE).facts["arms"]]:
        if (RESULTS / f"{name}.json").exists():
            text = (RESULTS / f"{name}.json").read_text()
            found.setdefault(re.sub(r"-seed\d+$", "", name), []).append(json.loads(text))
    return found


def shares(result: dict[str, Any], split: str) -> dict[str, float]:
    """Category, and "overall", to adherence."""
    return {x["category"]: x["share"] for x in result["splits"][split]["adherence"]}


def passed(seeds: list[dict[str, Any]], split: str) -> Tensor:
    """Share of an arm's seeds whose picture of a prompt is what it says, prompt by prompt."""
    return torch.tensor([[float(x) for x in seed["splits"][split]["verdicts"]] for seed in seeds]).mean(0)


def differences(found: dict[str, list[dict[str, Any]]], split: str) -> dict[str, dict[str, BootstrapInterval]]:
    """ "A - B" -> category, and "overall" -> mean difference in adherence on the same prompts and noise."""
    asked = [x.category for x in prompts(split, SPLITS[split])]
    rows = {kind: [i for i, x in enumerate(asked) if x == kind] for kind in dict.fromkeys(asked)}
    rows["overall"] = list(range(len(asked)))
    pairs = [(a, b) for a, b in COMPARED if a in found and b in found]
    return {
        f"{a} - {b}": {
            kind: paired_bootstrap(passed(found[a], split)[part], passed(found[b], split)[part])
            for kind, part in rows.items()
        }
        for a, b in pairs
    }


def cell(values: Sequence[float]) -> str:
    """Mean, and where there are several, largest minus smallest in brackets."""
    spread = f" ({max(values) - min(values):.3f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"


def table(found: dict[str, list[dict[str, Any]]], split: str) -> str:
    """One row an arm, its seeds together, then what real renders have."""
    teacher = found["teacher"][0]["splits"][split]
    kinds = list(shares(found["teacher"][0], split))
    lines = [["arm", "seeds", "evaluations", *FIGURES.values(), *kinds]]
    for name, seeds in found.items():
        figures = [cell([x["splits"][split][key] for x in seeds]) for key in FIGURES]
        figures += [cell([shares(x, split)[kind] for x in seeds]) for kind in kinds]
        lines.append([name, str(len(seeds)), str(seeds[0]["nfe"]), *figures])
    judged = [f"{x['detector_accuracy']:.3f}" for x in teacher["adherence"]]
    return markdown_table([*lines, ["real renders", "", "", f"{teacher['fd_floor']:.3f}", "", "", *judged]])


def difference_table(compared: dict[str, dict[str, BootstrapInterval]], kinds: Sequence[str]) -> str:
    """One row a pair of arms, with 95 % intervals."""
    lines = [["difference", *kinds]]
    for pair, parts in compared.items():
        lines.append([pair, *(f"{x.difference:+.3f} [{x.low:+.3f}, {x.high:+.3f}]" for x in parts.values())])
    return markdown_table(lines)


def handover_table() -> list[str]:
    """What ``--handovers`` found, if it was run."""
    if not HANDOVERS.exists():
        return []
    head = f"## Which step loses adherence: the first {HANDED_OVER} seen prompts"
    lines = [["arm", "drawn by", "adherence", "FD to teacher"]]
    for name, parts in json.loads(HANDOVERS.read_text()).items():
        lines += [[name, who, f"{x['adherence']:.3f}", f"{x['fd_to_teacher']:.3f}"] for who, x in parts.items()]
    return ["", head, "", markdown_table(lines)]


def summarise() -> None:
    """Write summary.json, docs/text-to-image-results.md and its picture."""
    found = results()
    heads = {"n0": "step_distillation", "n6-gated": "ard"}
    named = {heads.get(name, name.replace("-", "_")): seeds for name, seeds in found.items()}
    out: dict[str, Any] = {"prompts": SPLITS, "seeds": {name: len(seeds) for name, seeds in named.items()}}
    compared = {split: differences(found, split) for split in SPLITS}
    for split in SPLITS:
        suffix = "" if split == "seen" else f"_{split}"
        for key in ("adherence", *FIGURES):
            figures = {
                name: [shares(x, split)["overall"] if key == "adherence" else x["splits"][split][key] for x in seeds]
                for name, seeds in named.items()
            }
            out[key + suffix] = {name: round(sum(x) / len(x), 5) for name, x in figures.items()}
            out[f"{key}{suffix}_spread"] = {
                name: round(max(x) - min(x), 5) if len(x) > 1 else None for name, x in figures.items()
            }
        out[f"adherence_difference{suffix}"] = {
            pair: {kind: {k: round(v, 5) for k, v in x._asdict().items()} for kind, x in parts.items()}
            for pair, parts in compared[split].items()
        }
        out[f"fd_floor{suffix}"] = round(found["teacher"][0]["splits"][split]["fd_floor"], 5)
    (HERE / "summary.json").write_text(json.dumps(out, indent=1) + "\n")

    asked = prompts("seen", SHOWN * len(CATEGORIES))
    rows = {}
    for name in found:
        strip = torch.from_numpy(np.array(Image.open(RESULTS / f"{name}.png"))).permute(2, 0, 1)
        rows[name] = torch.stack(strip.split(strip.shape[1], -1)).float() / 127.5 - 1
    sample_grid(rows, DOCS / "text_to_image.png", [x.text for x in asked])
    lines = [INTRODUCTION, *handover_table()]
    for split, count in SPLITS.items():
        lines += ["", f"## {split.replace('_', ' ').capitalize()}, {count} prompts", "", table(found, split)]
        lines += ["", difference_table(compared[split], list(shares(found["teacher"][0], split)))]
    shown = "![The first prompts of each category, the same noise down each column](text_to_image.png)"
    (DOCS / "text-to-image-results.md").write_text("\n".join([*lines, "", shown, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".*", help="arms whose names match")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--handovers", action="store_true", help="of the matching arms, which must have been trained")
    parser.add_argument("--summary", action="store_true", help="write what the results say, and end")
    args = parser.parse_args()
    if args.summary:
        summarise()
        return
    torch.set_num_threads(args.threads)
    bench = Bench(RECIPE)
    RESULTS.mkdir(exist_ok=True)
    if args.handovers:
        arms = [x for x in bench.study.facts["arms"] if re.fullmatch(args.only, x)]
        found = json.loads(HANDOVERS.read_text()) if HANDOVERS.exists() else {}
        found |= {name: handovers(bench, name) for name in arms}
        write_whole(HANDOVERS, (json.dumps(found, indent=1) + "\n").encode())
        return
    for name in [*bench.solvers, *bench.study.facts["arms"]]:
        path = RESULTS / f"{name}.json"
        if not re.fullmatch(args.only, name) or path.exists():
            continue
        found, shown = run(bench, name)
        pixels = ((shown + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        Image.fromarray(torch.cat(list(pixels), -1).permute(1, 2, 0).numpy()).save(RESULTS / f"{name}.png")
        write_whole(path, (json.dumps(found) + "\n").encode())
        seen = found["splits"]["seen"]
        print(f"{name}: FD to teacher {seen['fd_to_teacher']:.4f}, adherence {seen['adherence'][-1]['share']:.4f}")


if __name__ == "__main__":
    main()
