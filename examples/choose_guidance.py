"""Sweep an embedded teacher's guidance scale, and write the figures, the picture and the card of its folder.

    python examples/choose_guidance.py
    python examples/choose_guidance.py --data emoji --count 1000 --scales 1 1.5 2 3

For every scale it draws samples in 25 steps from the same noise and measures FD to the training set, precision, recall
and the accuracy that an independent classifier sees; then the same for the 4-step solver at the best scale.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import torch

from ardistill.evaluation import (
    FeatureStatistics,
    Judge,
    class_accuracy,
    count_macs,
    extract_features,
    frechet_distance,
    precision_recall,
    real_floor,
    sample_grid,
)
from ardistill.teacher import ZOO, Teacher
from ardistill.zoo.classifier import classifier_path
from ardistill.zoo.data import CLASS_NAMES

CARD = """---
license: {license}
library_name: diffusers
tags: [{tag}, class-conditional, dit]
---

# {title}

{description}
{remark}
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this/folder", trust_remote_code=True)
images = pipeline(class_labels=[1, 7], guidance_scale={best}).images
```

## Quality

{num_samples} samples of {solver_steps} guided DDIM steps, the same noise at every scale; FD in the 128 features of an
independent classifier (test accuracy {test_accuracy:.3f}), which also judges the accuracy. As many held-out real
images are at FD {real_floor:.3f} (the floor). The scale with the least FD, **{best}**, is the one to use.

| guidance | FD | accuracy | precision | recall |
|---|---|---|---|---|
{rows}

Its untrained solver in 4 guided steps, at {best}: FD {solver_fd:.3f}, accuracy {solver_accuracy:.3f}.

![Samples at each scale, the same noise down each column](guidance.png)

Made by `examples/choose_guidance.py`; the figures are in `quality.json`.
"""


DESCRIPTION = (
    "A class-conditional `DiTTransformer2DModel` ({parameters:.2f} M parameters, {macs:.1f} M MACs a forward at batch "
    "1) on {images}, 10 classes, trained by `examples/train_teacher.py` on {source}: v-prediction, cosine schedule, "
    "{training}, 10 % label dropout, EMA. There is no VAE: the folder's pipeline draws pixels."
)
TEXTS = {
    "fashion": {
        "license": "mit",
        "tag": "fashion-mnist",
        "title": "Fashion-MNIST DiT, the embedded teacher",
        "images": "28x28 grey pixels",
        "source": "the 60,000 training images of Fashion-MNIST (Zalando SE, MIT; `../LICENSE`)",
        "training": "20,000 steps",
        "remark": "",
    },
    "emoji": {
        "license": "apache-2.0",
        "tag": "emoji",
        "title": "Emoji DiT, the embedded teacher in colour",
        "images": "32x32 colour pixels",
        "source": "60,000 renders of the emoji world "
        "(`../data.py`: one of ten Noto emoji, Apache-2.0, `../LICENSE`, on one of six backgrounds)",
        "training": "5,650 steps of 64 images (the first 2,750 with nouns of any size from 16 pixels and at any place)",
        "remark": "\nNoun and background are mostly recognisable, but the samples are far from the floor: this "
        "training was short. Outlines\nare ragged and details wrong; fish, star and airplane often fall apart.\n",
    },
}


def draw(name: str, scale: float, steps: int, labels: torch.Tensor) -> torch.Tensor:
    """The teacher's images in [-1, 1], from noise of seed 1 in shards of 500."""
    teacher = Teacher.from_pretrained(name, guidance_scale=scale)
    images = []
    for shard, part in enumerate(labels.split(500)):
        noise = teacher.noise(1, shard, len(part))
        images.append(
            teacher.decode(teacher.solve_ode(noise, {"class_labels": part}, teacher.knots(steps)).states[:, -1])
        )
    return torch.cat(images)


def quality(judge: Judge, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Figures of images that were drawn for these labels."""
    features = extract_features(judge.network, images)
    near = precision_recall(judge.held_out_features, features)
    return {
        "fd": frechet_distance(judge.reference, FeatureStatistics.from_features(features)),
        "accuracy": class_accuracy(judge.classifier, images, labels),
        "precision": near.precision,
        "recall": near.recall,
    }


def card(data: str, facts: dict[str, Any]) -> str:
    """The model card of an embedded teacher, from the contents of ``quality.json``."""
    keys = ("guidance_scale", "fd", "accuracy", "precision", "recall")
    rows = "\n".join("| " + " | ".join(f"{row[key]:.3g}" for key in keys) + " |" for row in facts["sweep"])
    teacher = Teacher.from_pretrained(f"zoo/{data}")
    inputs = teacher.noise(0, 0, 1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    size = {
        "parameters": sum(p.numel() for p in teacher.transformer.parameters()) / 1e6,
        "macs": count_macs(lambda: teacher.transformer(*inputs)) / 1e6,
    }
    classifier = json.loads(classifier_path(data).with_suffix(".json").read_text())
    solver_facts = {f"solver_{key}": value for key, value in facts["solver_4"].items()}
    more = {"best": facts["best_guidance_scale"], "rows": rows, "test_accuracy": classifier["test_accuracy"]}
    texts: dict[str, Any] = TEXTS[data] | size | facts | solver_facts | more
    texts["description"] = textwrap.fill(DESCRIPTION.format(**texts), 120)
    return CARD.format(**texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(CLASS_NAMES), default="fashion")
    parser.add_argument("--out", help="folder for figures, picture and card (default: the teacher's)")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 1.75, 2.0, 3.0])
    args = parser.parse_args()
    name = f"zoo/{args.data}"
    out, judge, labels = Path(args.out or ZOO[name]), Judge.zoo(args.data), torch.arange(args.count) % 10

    sweep, grid = [], {}
    for scale in args.scales:
        images = draw(name, scale, args.solver_steps, labels)
        sweep.append({"guidance_scale": scale} | quality(judge, images, labels))
        print(sweep[-1], flush=True)
        grid[f"guidance {scale}"] = images[:20]
    best = min(sweep, key=lambda row: row["fd"])["guidance_scale"]
    solver = draw(name, best, 4, labels)
    grid[f"{best}, 4 steps"] = solver[:20]
    facts: dict[str, Any] = {
        "num_samples": args.count,
        "solver_steps": args.solver_steps,
        "real_floor": real_floor(judge.held_out_features, judge.reference, min(args.count, 2000)).distance,
        "best_guidance_scale": best,
        "sweep": sweep,
        "solver_4": quality(judge, solver, labels),
    }
    (out / "quality.json").write_text(json.dumps(facts, indent=1) + "\n")
    sample_grid(grid, out / "guidance.png")
    (out / "README.md").write_text(card(args.data, facts))


if __name__ == "__main__":
    main()
