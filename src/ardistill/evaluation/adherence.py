"""Prompt adherence: whether a picture of the scene world shows what its prompt says, in GenEval's categories.

The detector's own errors bound what can be measured, so that they stand beside every score: a sampler that draws like
the renderer itself scores the detector's accuracy, and some wrong pictures pass.

Source: Ghosh et al. 2023, GenEval, arXiv:2310.11513.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ardistill.zoo.scenes.data import CATEGORIES, IMAGE_SIZE, SPLITS, Prompt, read_caption
from ardistill.zoo.scenes.detector import WEIGHTS, Detector, Found, load_detector

Z_95 = 1.959964
"""Of a normal distribution, 95 % lie within so many standard deviations."""


def adheres(found: Sequence[Found], prompt: Prompt) -> bool:
    """Whether these nouns are what a prompt says: all it names, as often as it says, and nothing else.

    GenEval lets other things be in a picture; a scene has what its caption names alone. Of the first noun to the
    second, a relation holds where it makes up more than half of the distance (GenEval's rule: within 60 degrees).

    Args:
        found: Nouns in a picture.
        prompt: What was asked for.
    """
    if Counter(x.noun for x in found) != Counter({noun: prompt.count for noun in prompt.nouns}):
        return False
    if prompt.size is not None and any(x.size != prompt.size for x in found):
        return False
    if prompt.colours is not None:
        colour_of = dict(zip(prompt.nouns, prompt.colours, strict=True))
        if any(x.colour != colour_of[x.noun] for x in found):
            return False
    if prompt.relation is None:
        return True
    first, second = (next(x for x in found if x.noun == noun) for noun in prompt.nouns)
    right, down = second.x - first.x, second.y - first.y
    return (right, down)[prompt.relation] > 0.5 * math.hypot(right, down)


def judge(detector: Detector, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Whether each image shows what its prompt says, bool, shape (n,); pairs with another sampler's, prompt by prompt.

    Args:
        detector: From ``load_detector``.
        images: In [-1, 1], shape (n, 3, 32, 32).
        prompts: One for each image.

    Raises:
        ValueError: The numbers of images and prompts differ, or images of another shape.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expected one prompt per image, got {len(prompts)} prompts for {len(images)} images")
    found = detector.find(images)
    return torch.tensor([adheres(nouns, prompt) for nouns, prompt in zip(found, prompts, strict=True)], device="cpu")


@dataclass(frozen=True)
class Score:
    """Share of images that are what their prompts say, and how far it can be trusted."""

    category: str
    """One of ``CATEGORIES``, or "overall"."""
    share: float
    low: float
    """Of the 95 % interval (Wilson)."""
    high: float
    num_images: int
    detector_accuracy: float
    """Share of renders of such prompts that the detector judges right: no sampler can be told from a perfect one above
    this."""
    detector_false_accepts: float
    """Share of renders of a prompt changed in one thing that pass."""


def scores(verdicts: Tensor, prompts: Sequence[Prompt], split: str = "seen") -> list[Score]:
    """Score of each category that the prompts have, then overall.

    Overall is the mean of the categories where each has as many prompts, as those of the scene world have.

    Args:
        verdicts: From `judge`, shape (n,), n of 1 or more.
        prompts: The same, in the same order.
        split: Of the prompts; unseen wordings are judged as seen ones are.

    Raises:
        ValueError: The numbers of verdicts and prompts differ or are 0, there is no such split, or a prompt has no
            category that the split has.
    """
    if len(verdicts) != len(prompts) or not prompts:
        raise ValueError(f"expected one verdict per prompt, got {len(verdicts)} for {len(prompts)} prompts")
    if split not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    facts = detector_facts()["unseen_combinations" if split == "unseen_combinations" else "seen"]
    known = [x for x in CATEGORIES if x in facts]
    unknown = {x.category for x in prompts} - set(known)
    if unknown:
        raise ValueError(f"expected prompts of the categories {', '.join(known)}, got {', '.join(map(repr, unknown))}")
    rows = []
    for category in known:
        passed = [bool(v) for v, prompt in zip(verdicts, prompts, strict=True) if prompt.category == category]
        if passed:
            share, interval = sum(passed) / len(passed), wilson_interval(sum(passed), len(passed))
            fact = facts[category]
            rows.append(Score(category, share, *interval, len(passed), fact["accuracy"], fact["false_accepts"]))
    total = sum(x.num_images for x in rows)
    accuracy = sum(x.num_images * x.detector_accuracy for x in rows) / total
    false_accepts = sum(x.num_images * x.detector_false_accepts for x in rows) / total
    passed_in_all = int(verdicts.sum())
    interval = wilson_interval(passed_in_all, total)
    return [*rows, Score("overall", passed_in_all / total, *interval, total, accuracy, false_accepts)]


def adherence(images: Mapping[str, Tensor], texts: Sequence[str]) -> dict[str, dict[str, list[Score]]]:
    """Scores of several samplers on captions as text; those of combinations unseen in training apart.

    Args:
        images: Sampler to images in [-1, 1], shape (n, 3, 32, 32).
        texts: The caption of each image, n of 1 or more.

    Returns:
        Split of the combinations, "seen" or "unseen_combinations", whatever the wording, to sampler to `scores`; empty
        if a text is no caption of the scene world, or the images are none of its size.
    """
    asked = [prompt for prompt in map(read_caption, texts) if prompt is not None]
    is_scene = all(x.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE) for x in images.values())
    if len(asked) < len(texts) or not is_scene:
        return {}
    detector = load_detector()
    verdicts = {name: judge(detector, x, asked) for name, x in images.items()}
    found = {}
    for split, unseen in (("seen", False), ("unseen_combinations", True)):
        rows = [i for i, prompt in enumerate(asked) if bool(prompt.unseen) == unseen]
        if rows:
            part = [asked[i] for i in rows]
            found[split] = {name: scores(x[rows], part, split) for name, x in verdicts.items()}
    return found


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a share.

    Args:
        successes: 0 to ``count``.
        count: 1 or more.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    share, spread = successes / count, Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def adherence_table(samplers: dict[str, list[Score]]) -> list[list[str]]:
    """Head and lines: one for each sampler, a column for each category; the detector's own shares stand below.

    Args:
        samplers: Name to `scores`, all of the same prompts.
    """
    first = next(iter(samplers.values()))
    lines = [["sampler", *(x.category for x in first)]]
    for name, row in samplers.items():
        lines.append([name, *(f"{x.share:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in row)])
    lines.append(["real renders, by the same detector", *(f"{x.detector_accuracy:.3f}" for x in first)])
    lines.append(["renders wrong in one thing", *(f"{x.detector_false_accepts:.3f}" for x in first)])
    return lines


def detector_facts() -> dict[str, Any]:
    """What ``examples/train_detector.py`` measured of the shipped weights."""
    facts: dict[str, Any] = json.loads(Path(WEIGHTS).with_suffix(".json").read_text())
    return facts
