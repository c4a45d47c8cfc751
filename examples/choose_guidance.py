"""Sweep the embedded teacher's guidance scale and record its quality: the figures of its card.

    python examples/choose_guidance.py --out src/ardistill/zoo/fashion/quality.json

For every scale: 24-step samples from the same noise, FD to the training set, accuracy by the independent classifier.
"""

from __future__ import annotations

import argparse
import json

import torch

from ardistill.evaluation import (
    FeatureStatistics,
    class_accuracy,
    extract_features,
    feature_network,
    frechet_distance,
    precision_recall,
    real_floor,
    sample_grid,
)
from ardistill.teacher import Teacher
from ardistill.zoo.fashion.classifier import load_classifier
from ardistill.zoo.fashion.reference import load_reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="quality.json")
    parser.add_argument("--grid", default="guidance.png")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    args = parser.parse_args()
    reference, classifier, network = load_reference(), load_classifier(), feature_network("fashion-classifier")
    labels = torch.arange(args.count) % 10
    rows, grid = [], {}
    for scale in args.scales:
        teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=scale)
        images = []
        for shard, part in enumerate(labels.split(500)):
            noise = teacher.noise(1, shard, len(part))
            knots = teacher.knots(args.solver_steps)
            images.append(teacher.solve_ode(noise, {"class_labels": part}, knots).states[:, -1].clamp(-1, 1))
        images = torch.cat(images)
        features = extract_features(network, images)
        quality = precision_recall(reference.held_out_features, features)
        row = {
            "guidance_scale": scale,
            "fd": frechet_distance(reference.train, FeatureStatistics.from_features(features)),
            "accuracy": class_accuracy(classifier, images, labels),
            "precision": quality.precision,
            "recall": quality.recall,
        }
        print(row, flush=True)
        rows.append(row)
        grid[f"guidance {scale}"] = images[:20]
    sample_grid(grid, args.grid)
    floor = real_floor(reference.held_out_features, reference.train)
    facts = {"num_samples": args.count, "solver_steps": args.solver_steps, "real_floor": floor.distance, "sweep": rows}
    with open(args.out, "w") as file:
        json.dump(facts, file, indent=1)


if __name__ == "__main__":
    main()
