"""Sweep the embedded teacher's guidance scale; writes the figures, the picture and the card of its folder.

    python examples/choose_guidance.py --out src/ardistill/zoo/fashion/teacher

For every scale: 25-step samples from the same noise, FD to the training set, precision, recall, and accuracy by the
independent classifier; and the untrained 4-step solver at the best scale.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ardistill.evaluation import (
    FeatureStatistics,
    Judge,
    class_accuracy,
    extract_features,
    frechet_distance,
    precision_recall,
    real_floor,
    sample_grid,
)
from ardistill.teacher import Teacher

CARD = """---
license: mit
library_name: diffusers
tags: [fashion-mnist, class-conditional, dit]
---

# Fashion-MNIST DiT, the embedded teacher

A class-conditional `DiTTransformer2DModel` ({parameters:.2f} M parameters, 42.0 M MACs a forward at batch 1) on 28x28
grey pixels, 10 classes, trained by `examples/train_teacher.py` on the 60,000 training images of Fashion-MNIST (Zalando
SE, MIT; `../LICENSE`): v-prediction, cosine schedule, 20,000 steps, 10 % label dropout, EMA. There is no VAE: the
folder's pipeline draws pixels.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this/folder", trust_remote_code=True)
images = pipeline(class_labels=[1, 7], guidance_scale={best}).images
```

## Quality

{num_samples} samples of {solver_steps} guided DDIM steps, the same noise at every scale; FD in the 128 features of an
independent classifier (test accuracy 0.936), which also judges the accuracy. As many held-out real images are at FD
{real_floor:.3f} (the floor). The scale with the least FD, **{best}**, is the default.

| guidance | FD | accuracy | precision | recall |
|---|---|---|---|---|
{rows}

Its untrained solver in 4 guided steps, at {best}: FD {solver_fd:.3f}, accuracy {solver_accuracy:.3f}.

![Samples at each scale, the same noise down each column](guidance.png)

Made by `examples/choose_guidance.py`; the figures are in `quality.json`.
"""


def draw(scale: float, steps: int, labels: torch.Tensor) -> torch.Tensor:
    """Images of the teacher, noise by seed 1 and shards of 500."""
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=scale)
    images = []
    for shard, part in enumerate(labels.split(500)):
        noise = teacher.noise(1, shard, len(part))
        images.append(
            teacher.decode(teacher.solve_ode(noise, {"class_labels": part}, teacher.knots(steps)).states[:, -1])
        )
    return torch.cat(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="src/ardistill/zoo/fashion/teacher")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 1.75, 2.0, 3.0])
    args = parser.parse_args()
    out, judge, labels = Path(args.out), Judge.fashion(), torch.arange(args.count) % 10

    def quality(images: torch.Tensor) -> dict[str, float]:
        features = extract_features(judge.network, images)
        near = precision_recall(judge.held_out_features, features)
        return {
            "fd": frechet_distance(judge.reference, FeatureStatistics.from_features(features)),
            "accuracy": class_accuracy(judge.classifier, images, labels),
            "precision": near.precision,
            "recall": near.recall,
        }

    sweep, grid = [], {}
    for scale in args.scales:
        images = draw(scale, args.solver_steps, labels)
        sweep.append({"guidance_scale": scale} | quality(images))
        print(sweep[-1], flush=True)
        grid[f"guidance {scale}"] = images[:20]
    best = min(sweep, key=lambda row: row["fd"])["guidance_scale"]
    solver = draw(best, 4, labels)
    grid[f"{best}, 4 steps"] = solver[:20]
    facts: dict[str, Any] = {
        "num_samples": args.count,
        "solver_steps": args.solver_steps,
        "real_floor": real_floor(judge.held_out_features, judge.reference, min(args.count, 2000)).distance,
        "best_guidance_scale": best,
        "sweep": sweep,
        "solver_4": quality(solver),
    }
    (out / "quality.json").write_text(json.dumps(facts, indent=1) + "\n")
    sample_grid(grid, out / "guidance.png")
    keys = ("guidance_scale", "fd", "accuracy", "precision", "recall")
    rows = "\n".join("| " + " | ".join(f"{row[key]:.3g}" for key in keys) + " |" for row in sweep)
    parameters = sum(p.numel() for p in Teacher.from_pretrained("zoo/fashion").transformer.parameters()) / 1e6
    solver_facts = {f"solver_{key}": value for key, value in facts["solver_4"].items()}
    (out / "README.md").write_text(CARD.format(**facts, **solver_facts, best=best, rows=rows, parameters=parameters))


if __name__ == "__main__":
    main()
