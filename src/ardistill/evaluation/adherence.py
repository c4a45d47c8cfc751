"""Prompt adherence: whether a picture of the scene world shows what its prompt says, in GenEval's categories.

The detector's errors limit the measurement and are reported with every score: a perfect sampler scores the detector's
accuracy, and some wrong pictures pass.

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
"""Number of standard deviations around the mean that hold 95 % of a normal distribution."""


def adheres(found: Sequence[Found], prompt: Prompt) -> bool:
    """Whether a picture holds all the nouns that a prompt names, in the right number, and nothing else.

    GenEval allows other objects in a picture; here they count as errors, because a scene shows only what its caption
    names. A relation holds if the distance from the first noun to the second is more than half in its direction
    (GenEval's rule: within 60 degrees).

    Args:
        found: Nouns that the detector found in the picture.
        prompt: The prompt that was drawn.
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


def check_adherence(detector: Detector, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Whether each image shows what its prompt says, bool, shape (n,).

    Args:
        detector: From ``load_detector``.
        images: In [-1, 1], shape (n, 3, 32, 32).
        prompts: One per image.

    Raises:
        ValueError: The numbers of images and prompts differ, or the images have another shape.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expected one prompt per image, got {len(prompts)} prompts for {len(images)} images")
    found = detector.find(images)
    return torch.tensor([adheres(nouns, prompt) for nouns, prompt in zip(found, prompts, strict=True)], device="cpu")


@dataclass(frozen=True)
class Score:
    """Share of images that show what their prompts say, and the detector's own errors."""

    category: str
    """One of ``CATEGORIES``, or "overall"."""
    share: float
    """Share of images that adhere to their prompts."""
    low: float
    """Lower end of the 95 % interval (Wilson)."""
    high: float
    """Upper end of the 95 % interval."""
    num_images: int
    """Number of images."""
    detector_accuracy: float
    """Share of real renders of such prompts that the detector accepts: the score of a perfect sampler."""
    detector_false_accepts: float
    """Share of real renders that pass for a prompt which differs in one attribute."""


def scores(verdicts: Tensor, prompts: Sequence[Prompt], split: str = "seen") -> list[Score]:
    """Scores of the categories of the prompts, then the overall score.

    The overall score is the mean over categories if all have as many prompts, as in the scene world's splits.

    Args:
        verdicts: From `check_adherence`, shape (n,), n of 1 or more.
        prompts: The prompts, in the same order.
        split: Split of the prompts; its detector errors are reported. Unseen wordings have those of the seen split.

    Raises:
        ValueError: The numbers of verdicts and prompts differ or are 0, the split is unknown, or a prompt has a
            category that the split lacks.
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
    """Scores of several samplers on captions, apart for combinations of attributes seen and unseen in training.

    Args:
        images: Sampler -> images in [-1, 1], shape (n, 3, 32, 32).
        texts: The caption of each image, n of 1 or more.

    Returns:
        "seen" or "unseen_combinations" -> sampler -> `scores`. Empty if a text is not a caption of the scene world or
        the images have another size.
    """
    asked = [prompt for prompt in map(read_caption, texts) if prompt is not None]
    is_scene = all(x.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE) for x in images.values())
    if len(asked) < len(texts) or not is_scene:
        return {}
    detector = load_detector()
    verdicts = {name: check_adherence(detector, x, asked) for name, x in images.items()}
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
        successes: Number of successes, 0 to ``count``.
        count: Number of trials, 1 or more.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    share, spread = successes / count, Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def adherence_table(samplers: dict[str, list[Score]]) -> list[list[str]]:
    """Cells of a table: a head, a line per sampler with a column per category, then the detector's own shares.

    Args:
        samplers: Name -> `scores`, all for the same prompts.
    """
    first = next(iter(samplers.values()))
    lines = [["sampler", *(x.category for x in first)]]
    for name, row in samplers.items():
        lines.append([name, *(f"{x.share:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in row)])
    lines.append(["real renders, by the same detector", *(f"{x.detector_accuracy:.3f}" for x in first)])
    lines.append(["renders wrong in one thing", *(f"{x.detector_false_accepts:.3f}" for x in first)])
    return lines


def detector_facts() -> dict[str, Any]:
    """Accuracy and false accepts of the shipped detector, as ``examples/train_detector.py`` measured them."""
    facts: dict[str, Any] = json.loads(Path(WEIGHTS).with_suffix(".json").read_text())
    return facts
