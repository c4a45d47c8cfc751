"""Measure a scene-world teacher's prompt adherence at several guidance scales, on seen and unseen prompts.

    python examples/measure_adherence.py --teacher runs/scenes_teacher/teacher --out runs/scenes_teacher/adherence

All scales use the same prompts and noise. Writes adherence.json and samples.png into --out and prints the tables, each
with the detector's own errors below.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ardistill.evaluation import markdown_table, sample_grid
from ardistill.evaluation.adherence import adherence_table, check_adherence, scores
from ardistill.teacher import Teacher
from ardistill.zoo.scenes.data import CATEGORIES, SPLITS, Prompt, prompts
from ardistill.zoo.scenes.detector import load_detector

SHARD = 100
"""Images drawn at once."""


def draw(teacher: Teacher, asked: list[Prompt], num_steps: int) -> torch.Tensor:
    """An image for each prompt, in [-1, 1], from noise of seed 1."""
    images = []
    for shard, start in enumerate(range(0, len(asked), SHARD)):
        condition = teacher.encode([x.text for x in asked[start : start + SHARD]])
        noise = teacher.noise(1, shard, len(asked[start : start + SHARD]))
        images.append(teacher.decode(teacher.solve_ode(noise, condition, teacher.knots(num_steps)).states[:, -1]))
    return torch.cat(images)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="zoo/scenes")
    parser.add_argument("--out", required=True, help="folder for the figures and the picture")
    parser.add_argument("--count", type=int, default=300, help="prompts of each split (default: %(default)s)")
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0])
    parser.add_argument("--splits", choices=SPLITS, nargs="+", default=SPLITS)
    args = parser.parse_args(argv)

    detector, out = load_detector(), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found, pictures = {}, {}
    for split in args.splits:
        asked, rows = prompts(split, args.count), {}
        for scale in args.scales:
            teacher = Teacher.from_pretrained(args.teacher, guidance_scale=scale)
            images = draw(teacher, asked, args.solver_steps)
            rows[f"guidance {scale:g}"] = scores(check_adherence(detector, images, asked), asked, split)
            if split == "seen":
                pictures[f"guidance {scale:g}"] = images[: 2 * len(CATEGORIES)]
        found[split] = {name: [asdict(score) for score in row] for name, row in rows.items()}
        print(
            f"{split}, {args.count} prompts, {args.solver_steps} steps\n\n{markdown_table(adherence_table(rows))}\n",
            flush=True,
        )
    facts = {"teacher": args.teacher, "solver_steps": args.solver_steps, "prompts": args.count, "scores": found}
    (out / "adherence.json").write_text(json.dumps(facts, indent=1) + "\n")
    if pictures:
        sample_grid(pictures, out / "samples.png")


if __name__ == "__main__":
    main()
