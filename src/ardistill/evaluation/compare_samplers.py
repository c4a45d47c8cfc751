"""Compare samplers: the same noise and conditions for every arm, judged by the same networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ardistill.evaluation.adherence import Score, adherence
from ardistill.evaluation.comparison import SHOWN, Comparison, Figures
from ardistill.evaluation.cost import count_macs, latency_ms
from ardistill.evaluation.features import extract_features
from ardistill.evaluation.headlines import verdict
from ardistill.evaluation.judge import Judge
from ardistill.evaluation.metrics import (
    BootstrapInterval,
    FeatureStatistics,
    PairedDistance,
    RealFloor,
    class_accuracy,
    frechet_distance,
    kernel_distance,
    paired_bootstrap,
    paired_distance,
    precision_recall,
    predict_labels,
    real_floor,
)
from ardistill.evaluation.sampler import Sampler
from ardistill.evaluation.tables import arm_label
from ardistill.evaluation.videos import frames_of, motion, num_frames
from ardistill.families import Condition
from ardistill.progress import bar
from ardistill.teacher import Teacher
from ardistill.zoo.scenes.data import read_caption

TIMED = 10
"""Samples in the batch that latency is measured on."""


@torch.no_grad()
def compare_samplers(
    teacher: Teacher,
    teacher_images: Tensor,
    arms: Mapping[str, Sampler],
    noise: Tensor,
    condition: Condition,
    judge: Judge,
    *,
    labels: Tensor | None = None,
    prompts: Sequence[str] | None = None,
    baseline: str | None = None,
    batch_size: int = 250,
) -> Comparison:
    """Judge every arm on the same noise and conditions, next to the teacher.

    Each arm draws on its sampler's device; images and metrics are on the CPU.

    Args:
        teacher: Decodes what the arms draw.
        teacher_images: The teacher's images in [-1, 1] from the same noise and conditions, (n, c, h, w), or videos, (n,
            c, f, h, w): the arm ``teacher``. Metrics of videos are those of their frames.
        arms: The other arms; if one is called ``teacher``, only its cost is measured.
        noise: x_T, (n, c, h, w).
        condition: One row per sample.
        judge: Networks and reference.
        labels: Class, or number of the prompt, of each sample, (n,); the condition's class labels if not given.
        prompts: The prompt of each sample, for a text-to-image teacher. The judge's ``text_scores`` need them, and if
            all are captions of the scene world, adherence is measured.
        baseline: The arm that the others are compared with, pair by pair; the notes compare arms with
            equal network evaluations (NFE), which with history is not equal compute.
        batch_size: Samples drawn at once.

    Raises:
        ValueError: ``baseline`` is no arm; the numbers of noises, labels, prompts and teacher's images differ; or the
            judge scores text and there are no prompts.
    """
    labels = (condition["class_labels"] if labels is None else labels).cpu()
    _check(teacher, teacher_images, arms, noise, judge, labels, prompts, baseline)
    drawn = {"teacher": teacher_images.cpu()} | {
        arm: _drawn(arm, sampler, teacher, noise, condition, batch_size)
        for arm, sampler in arms.items()
        if arm != "teacher"
    }
    frames = num_frames(teacher_images)
    images = {arm: frames_of(x) for arm, x in drawn.items()}
    of_frames = labels.repeat_interleave(frames)
    prompts = [prompt for prompt in prompts for _ in range(frames)] if prompts else prompts
    features = {arm: extract_features(judge.network, x) for arm, x in images.items()}
    pairs = _pairs(judge, images, features, frames)
    scores = adherence(images, prompts) if prompts else {}
    to_teacher = _distances_to_teacher(features)
    figures = {
        arm: _quality(judge, images[arm], features[arm], of_frames)
        | _text_quality(judge, images[arm], prompts, [by_arm[arm][-1] for by_arm in scores.values()])
        | {"fd_to_teacher": to_teacher[arm]}
        | _motion(drawn[arm], drawn["teacher"])
        | _paired(pairs[arm])
        | (_cost(arms[arm], noise, condition) if arm in arms else {})
        for arm in images
    }
    intervals = _intervals(arms, pairs, baseline)
    notes = [
        standing(arm, baseline, interval)
        for arm, interval in intervals.items()
        if baseline is not None and arms[arm].nfe == arms[baseline].nfe
    ]
    floor = _floor(judge, len(of_frames))
    if floor is not None:
        notes.append(f"Real-versus-real floor of FD: {floor}.")
    notes += _adherence_notes(bool(scores), judge, prompts or ())
    notes.append(_explanation(len(noise), judge, pairs["teacher"], frames))
    return Comparison(
        arms=figures,
        intervals=intervals,
        baseline=baseline,
        images=drawn,
        labels=labels,
        feature_network=judge.network.name,
        floor=floor and floor.distance,
        notes=notes,
        adherence=scores,
        prompts=[*(prompts or ())][::frames][:SHOWN],
    )


def _check(
    teacher: Teacher,
    teacher_images: Tensor,
    arms: Mapping[str, Sampler],
    noise: Tensor,
    judge: Judge,
    labels: Tensor,
    prompts: Sequence[str] | None,
    baseline: str | None,
) -> None:
    """Raise a ValueError if the arguments of `compare_samplers` do not fit together."""
    if not len(noise) == len(labels) == len(teacher_images):
        raise ValueError(
            f"expected equal numbers of noises, labels and teacher's images, got {len(noise)}, {len(labels)} and "
            f"{len(teacher_images)}"
        )
    if prompts is not None and len(prompts) != len(noise):
        raise ValueError(f"expected a prompt for each of {len(noise)} noises, got {len(prompts)}")
    if judge.text_scores and prompts is None:
        name = teacher.name or "the teacher"
        raise ValueError(f"{', '.join(judge.text_scores)} need prompts, which {name} does not take; leave them out")
    if baseline is not None and baseline not in arms:
        raise ValueError(f"unknown baseline {baseline!r}; the arms are {', '.join(arms)}")


def _rows(noise: Tensor, condition: Condition, part: slice, device: torch.device | None) -> tuple[Tensor, Condition]:
    """Some rows of noise and condition, on a device."""
    return noise[part].to(device), {name: value[part].to(device) for name, value in condition.items()}


def _drawn(
    arm: str, sampler: Sampler, teacher: Teacher, noise: Tensor, condition: Condition, batch_size: int
) -> Tensor:
    """An arm's images in [-1, 1], (n, c, h, w), or videos, (n, c, f, h, w)."""
    starts = bar(range(0, len(noise), batch_size), desc=f"draw {arm}", disable=len(noise) <= batch_size)
    drawn = [
        sampler.draw(*_rows(noise, condition, slice(start, start + batch_size), sampler.device)) for start in starts
    ]
    return torch.cat([teacher.decode(latents, frames=True) for latents in drawn])


def _pairs(
    judge: Judge, images: Mapping[str, Tensor], features: Mapping[str, Tensor], frames: int
) -> dict[str, PairedDistance]:
    """Each arm's samples next to the teacher's from the same noise."""
    seen = {arm: predict_labels(judge.classifier, x) for arm, x in images.items()} if judge.classifier else {}
    return {
        arm: paired_distance(x, features["teacher"], seen.get(arm), seen.get("teacher"), frames)
        for arm, x in features.items()
    }


def _distances_to_teacher(features: Mapping[str, Tensor]) -> dict[str, float]:
    """Arm -> FD to the teacher's samples."""
    statistics = {arm: FeatureStatistics.from_features(x) for arm, x in features.items()}
    return {arm: frechet_distance(statistics["teacher"], x) for arm, x in statistics.items()}


def _quality(judge: Judge, images: Tensor, features: Tensor, labels: Tensor) -> Figures:
    """Metrics against real images and by the classifier."""
    figures: Figures = {}
    if judge.reference is not None:
        figures["fd"] = frechet_distance(judge.reference, FeatureStatistics.from_features(features))
    if judge.real_features is not None:
        real = judge.real_features
        size = min(500, len(images), len(real))
        figures["kid"] = kernel_distance(real, features, subset_size=size).mean
        near = precision_recall(real[: len(images)], features[: len(real)])  # comparable only at equal numbers
        figures |= {"precision": near.precision, "recall": near.recall}
    if judge.classifier is not None:
        figures["accuracy"] = class_accuracy(judge.classifier, images, labels)
    return figures


def _text_quality(judge: Judge, images: Tensor, prompts: Sequence[str] | None, overall: Sequence[Score]) -> Figures:
    """Metrics against the prompts; ``overall`` is the overall adherence in each split."""
    figures: Figures = {}
    if overall:
        figures["adherence"] = sum(x.share * x.num_images for x in overall) / sum(x.num_images for x in overall)
    if prompts is not None:
        figures |= {name: float(score(images, prompts).mean()) for name, score in judge.text_scores.items()}
    return figures


def _motion(drawn: Tensor, teachers: Tensor) -> Figures:
    """The metric ``motion``: that of an arm's videos divided by that of the teacher's; no metric for images."""
    return {"motion": motion(drawn) / max(motion(teachers), 1e-12)} if num_frames(drawn) > 1 else {}


def _floor(judge: Judge, count: int) -> RealFloor | None:
    """FD of as many held-out real images to the reference; None without both."""
    if judge.reference is None or judge.held_out_features is None:
        return None
    return real_floor(judge.held_out_features, judge.reference, min(count, len(judge.held_out_features)))


def _paired(pair: PairedDistance) -> Figures:
    return {
        "feature_distance_to_teacher": pair.mean,
        "feature_distance_median": pair.median,
        "feature_distance_trimmed_mean": pair.trimmed_mean,
        "flipped": pair.flipped,
    }


def _cost(sampler: Sampler, noise: Tensor, condition: Condition) -> Figures:
    """MACs of one sample, milliseconds per sample at a batch of 10."""
    one, ten = (_rows(noise, condition, slice(n), sampler.device) for n in (1, TIMED))
    return {
        "nfe": sampler.nfe,
        "macs_per_image": count_macs(lambda: sampler.draw(*one)),
        "ms_per_image": latency_ms(lambda: sampler.draw(*ten), device=sampler.device) / len(ten[0]),
        "seeds": 1,
    }


def _intervals(
    arms: Mapping[str, Sampler], pairs: Mapping[str, PairedDistance], baseline: str | None
) -> dict[str, BootstrapInterval]:
    """Arm -> its paired distance to the teacher minus the baseline's."""
    if baseline is None:
        return {}
    others = [arm for arm in arms if arm not in ("teacher", baseline)]
    return {arm: paired_bootstrap(pairs[arm].values, pairs[baseline].values) for arm in others}


def standing(arm: str, baseline: str, interval: BootstrapInterval) -> str:
    """A sentence that says how an arm compares with a baseline of equal NFE in paired distance to the teacher."""
    return (
        f"{arm_label(arm)} is {verdict(interval)} {arm_label(baseline)} at this compute: paired distance to the "
        f"teacher {interval.difference:+.4f} (95 % interval {interval.low:+.4f} to {interval.high:+.4f})."
    )


def _adherence_notes(measured: bool, judge: Judge, prompts: Sequence[str]) -> list[str]:
    """What adherence means, or why it was not measured."""
    if measured:
        notes = [
            "Adherence: the share of images that show what their prompts say and nothing else, as judged by a "
            "detector; a column of its tables is a kind of prompt, higher is better, and the detector's shares on real "
            "renders bound what can be measured."
        ]
        if judge.reference is not None:
            notes.append(
                "FD, KID, precision and recall compare with renders of the scene world's own mix of captions: for "
                "another mix of prompts even real renders are farther away than the floor."
            )
        return notes
    others = [x for x in prompts if read_caption(x) is None]
    if 0 < len(others) < len(prompts):
        return [
            f"Adherence was not measured: it needs captions of the scene world only, {len(others):,} of "
            f"{len(prompts):,} prompts are others, such as {others[0]!r}."
        ]
    return []


def _explanation(count: int, judge: Judge, teacher: PairedDistance, frames: int) -> str:
    kind = "samples" if frames == 1 else f"videos of {frames} frames, which all metrics but motion see one by one,"
    return (
        f"{count:,} {kind} per arm from the same noise; FD is {judge.network.fd_name}; distance to the teacher: "
        f"Euclidean, of paired features (unpaired samples of the teacher are {teacher.unpaired:.2f} apart); "
        "milliseconds at batch 10."
    )
