"""The whole way on the embedded teacher: record, distil three students with equal FLOPs, compare, report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ardistill.evaluation import (
    FeatureStatistics,
    class_accuracy,
    exposure_bias_plot,
    extract_features,
    feature_network,
    format_table,
    frechet_distance,
    kernel_distance,
    paired_bootstrap,
    paired_distance,
    precision_recall,
    predict_labels,
    real_floor,
    sample_grid,
    write_report,
)
from ardistill.evaluation.cost import count_macs, latency_ms
from ardistill.evaluation.diagnostics import exposure_bias
from ardistill.export import export, model_card
from ardistill.sampling import sample
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher
from ardistill.training import TrainingConfig, train
from ardistill.trajectories import TrajectoryDataset, record
from ardistill.zoo.fashion.classifier import load_classifier
from ardistill.zoo.fashion.data import CLASS_NAMES
from ardistill.zoo.fashion.reference import load_reference


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of the quickstart; the defaults fit in ten minutes on two cores."""

    out: str = "runs/quickstart"
    """Run folder; the same command again resumes it."""
    num_trajectories: int = 2048
    """Recorded for training."""
    num_eval: int = 1000
    """Held-out noises that every arm is compared on."""
    max_steps: int = 120
    """Optimiser steps of each arm."""
    batch_size: int = 64
    """Trajectories per step of the 4-step arms; the 1-step arm takes four times as many, so that FLOPs are equal."""
    learning_rate: float = 5e-4
    history_layers: int = 2
    """N of the ARD arm, of 7 layers."""
    guidance_scale: float = 1.5
    """Of the teacher: the best of the sweep in its card."""
    seed: int = 0


def _batched(draw: Any, noise: Tensor, labels: Tensor, size: int = 250) -> Tensor:
    """Images, clamped to [-1, 1], of ``draw(noise, condition) -> (b, s, c, h, w)``."""
    parts = zip(noise.split(size), labels.split(size), strict=True)
    return torch.cat([draw(x, {"class_labels": y})[:, -1].clamp(-1, 1) for x, y in parts])


def quickstart(config: QuickstartConfig | None = None) -> dict[str, Any]:
    """Record, distil, compare and report; writes metrics.json, report.html, samples.png and exposure_bias.png.

    Returns:
        What ``metrics.json`` holds.
    """
    config = config or QuickstartConfig()
    began, out = time.time(), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=config.guidance_scale)
    for name, count, seed in (
        ("train", config.num_trajectories, config.seed),
        ("eval", config.num_eval, config.seed + 1),
    ):
        folder = out / "trajectories" / name
        record(teacher, folder, count, name="zoo/fashion", num_steps=(1, 4), seed=seed)

    arms = {"kd": (1, 0, 4), "step_distillation": (4, 0, 1), "ard": (4, config.history_layers, 1)}
    students: dict[str, Student] = {}
    for arm, (num_steps, history_layers, factor) in arms.items():
        data = TrajectoryDataset(out / "trajectories" / "train", num_steps, teacher.fingerprint())
        student = Student.from_teacher(teacher, StudentConfig(data.knots, history_layers))
        training = TrainingConfig(
            max_steps=config.max_steps,
            batch_size=config.batch_size * factor,
            learning_rate=config.learning_rate,
            lr_scheduler="cosine",
            lr_warmup_steps=10,
            ema_decay=0.98,
            seed=config.seed,
            checkpoint_every=100,
        )
        print(f"{arm}: {num_steps} steps, history in {history_layers} layers", flush=True)
        students[arm] = train(student, data, out / arm, training)

    held_out = TrajectoryDataset(out / "trajectories" / "eval", 4)
    items = [held_out[i] for i in range(len(held_out))]
    states, denoised = (torch.stack([item[key] for item in items]) for key in ("states", "denoised"))
    noise, labels = states[:, 0], held_out.class_labels

    def solver(num_steps: int) -> Any:
        return lambda x, condition: teacher.solve_ode(x, condition, teacher.knots(num_steps)).states

    draws = {"teacher": solver(24), "solver": solver(4), "solver_1": solver(1)}
    draws |= {arm: partial(sample, student) for arm, student in students.items()}
    network, classifier, reference = feature_network("fashion-classifier"), load_classifier(), load_reference()
    images = {"teacher": states[:, -1].clamp(-1, 1)}
    images |= {arm: _batched(draw, noise, labels) for arm, draw in draws.items() if arm != "teacher"}
    features = {arm: extract_features(network, x) for arm, x in images.items()}
    statistics = {arm: FeatureStatistics.from_features(x) for arm, x in features.items()}
    teacher_labels = predict_labels(classifier, images["teacher"])
    one, ten = noise[:1], noise[:10]
    nfe = {"teacher": 48, "solver": 8, "solver_1": 2, "kd": 1, "step_distillation": 4, "ard": 4}
    metrics: dict[str, Any] = {"arms": {}}
    pairs = {}
    for arm, draw in draws.items():
        quality = precision_recall(reference.real_features[: len(noise)], features[arm])
        pairs[arm] = pair = paired_distance(
            features[arm], features["teacher"], predict_labels(classifier, images[arm]), teacher_labels
        )
        metrics["arms"][arm] = {
            "fd": frechet_distance(reference.train, statistics[arm]),
            "fd_to_teacher": frechet_distance(statistics["teacher"], statistics[arm]),
            "kid": kernel_distance(reference.real_features, features[arm], subset_size=min(500, len(noise))).mean,
            "precision": quality.precision,
            "recall": quality.recall,
            "accuracy": class_accuracy(classifier, images[arm], labels),
            "feature_distance_to_teacher": pair.mean,
            "feature_distance_median": pair.median,
            "feature_distance_trimmed": pair.trimmed_mean,
            "flipped": pair.flipped,
            "nfe": nfe[arm],
            "macs_per_image": count_macs(partial(draw, one, {"class_labels": labels[:1]})),
            "ms_per_image": latency_ms(partial(draw, ten, {"class_labels": labels[:10]})) / 10,
            "seeds": 1,
        }
    interval = paired_bootstrap(pairs["ard"].values, pairs["step_distillation"].values)
    floor = real_floor(reference.held_out_features, reference.train, count=min(len(noise), 2000))
    ahead = "ahead of" if interval.high < 0 else "behind" if interval.low > 0 else "not distinguishable from"
    sentence = (
        f"ARD is {ahead} step distillation at this compute: paired distance to the teacher, ARD minus step "
        f"distillation, {interval.difference:+.4f} (95 % interval {interval.low:+.4f} to {interval.high:+.4f})."
    )
    curves = {
        arm: exposure_bias(students[arm], teacher, states[:200], denoised[:200], {"class_labels": labels[:200]})
        for arm in ("step_distillation", "ard")
    }
    metrics |= {
        "feature_network": network.fd_name,
        "num_samples": len(noise),
        "real_floor": floor.distance,
        "ard_minus_step_distillation": {"mean": interval.difference, "low": interval.low, "high": interval.high},
        "exposure_bias": curves,
        "conclusion": sentence,
        "seconds": time.time() - began,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    # The first 20 held-out noises, every class twice: not chosen.
    shown = {arm: images[arm][:20] for arm in ("teacher", "solver", "kd", "step_distillation", "ard")}
    sample_grid(shown, out / "samples.png", [CLASS_NAMES[int(i)] for i in labels[:20]])
    exposure_bias_plot(curves, out / "exposure_bias.png")
    hidden = ("feature_distance_median", "feature_distance_trimmed", "flipped")
    rows = [{"arm": a} | {k: v for k, v in m.items() if k not in hidden} for a, m in metrics["arms"].items()]
    notes = [
        sentence,
        str(floor),
        f"{len(noise)} samples per arm from the same noise; distances in {network.fd_name}; one seed; "
        "latency on the CPU at batch 10.",
    ]
    pictures = {"The same noise down each column": out / "samples.png", "Error per step": out / "exposure_bias.png"}
    write_report(out / "report.html", "ardistill quickstart", rows, notes, pictures)
    if not (out / "student").exists():
        card = model_card(
            students["ard"], "zoo/fashion", config.guidance_scale, f"{sentence}\n\n![samples](samples.png)"
        )
        export(students["ard"], teacher.scheduler, out / "student", card, out / "samples.png")
    print(format_table(rows), *notes, f"Report: {out / 'report.html'}", sep="\n")
    return metrics
