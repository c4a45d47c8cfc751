"""Train the detector of zoo/scenes, which judges adherence, and measure its errors.

    python examples/train_detector.py

Writes detector.safetensors (float16) and detector.json with two shares per category: of held-out renders that the
rounded weights accept for their prompts, and of renders that they accept for prompts that differ in one attribute. Half
of the training pictures are scenes, with seen and unseen combinations; the others are what a bad sampler might draw: no
nouns, or any number of them in any colours. Some of all pictures are noisy or blurred.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ardistill.evaluation.adherence import adheres
from ardistill.zoo.scenes.data import (
    BACKGROUNDS,
    CATEGORIES,
    CELL,
    COLOURS,
    IMAGE_SIZE,
    NOUNS,
    RELATIONS,
    SIZES,
    Noun,
    Prompt,
    Scene,
    as_images,
    example,
    scene,
)
from ardistill.zoo.scenes.detector import STRIDE, WEIGHTS, Detector

HELD_OUT_SEED = 9


def any_picture(random: np.random.Generator) -> Scene:
    """A picture with one large noun, or with up to four small ones, one per cell, of any kind and colour."""

    def noun(size: str, left: int, top: int) -> Noun:
        return Noun(int(random.integers(len(NOUNS))), int(random.integers(len(COLOURS))), size, left, top)

    background = int(random.integers(len(BACKGROUNDS)))
    if random.random() < 0.15:
        return Scene(
            (noun("large", *map(int, random.integers(IMAGE_SIZE - SIZES["large"] + 1, size=2))),), None, background
        )
    shift = random.integers(CELL - SIZES["small"] + 1, size=(4, 2))
    cells = random.permutation(4)[: random.integers(5)]
    places = [(int(c % 2 * CELL + x), int(c // 2 * CELL + y)) for c, (x, y) in zip(cells, shift, strict=False)]
    return Scene(tuple(noun("small", *place) for place in places), None, background)


def training_scene(index: int) -> Scene:
    """A training picture of seed 0: a scene if ``index`` is even (one in four unseen), else any picture."""
    if index % 2:
        return any_picture(np.random.default_rng((0, index, 3)))
    return scene(0, index, "unseen_combinations" if index % 8 == 0 else "seen")


def targets(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Presence (n, 8, 8), a bump around each noun's centre; noun, colour and size of the nearest noun (n, 3, 8, 8)."""
    middles = (torch.arange(IMAGE_SIZE // STRIDE) + 0.5) * STRIDE
    presence = torch.zeros(len(scenes), len(middles), len(middles))
    labels = torch.zeros(len(scenes), 3, len(middles), len(middles), dtype=torch.long)
    for i, found in enumerate(scenes):
        for x in found.nouns:
            half = SIZES[x.size] / 2
            down, across = middles - x.top - half, middles - x.left - half
            bump = torch.exp(-(down[:, None] ** 2 + across**2) / (2 * (0.6 * STRIDE) ** 2))
            nearer = bump > presence[i]
            presence[i] = torch.maximum(presence[i], bump)
            values = torch.tensor([x.noun, x.colour, tuple(SIZES).index(x.size)])
            labels[i] = torch.where(nearer, values[:, None, None], labels[i])
    return presence, labels


def corrupt(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur a third of the images, then add Gaussian noise of standard deviation 0 to 0.3 to half of them."""
    rows = torch.rand(len(images), 3, 1, 1, 1, generator=generator)
    share = rows[:, 1] * (rows[:, 0] < 1 / 3)
    images = torch.lerp(images, nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False), share)
    noise = torch.randn(images.shape, generator=generator)
    return images + 0.3 * rows[:, 2] * (rows[:, 1] < 0.5) * noise


def altered(prompt: Prompt, random: np.random.Generator) -> Prompt:
    """A prompt that differs from the given one in the attribute that its category is about."""

    def other(value: int, count: int) -> int:
        return int((value + random.integers(1, count)) % count)

    nouns, colours = prompt.nouns, prompt.colours
    if prompt.category == "counting":
        return replace(prompt, count=2 + other(prompt.count - 2, 3))
    if prompt.category == "position":
        flipped = replace(prompt, nouns=nouns[::-1])
        return (flipped, replace(prompt, relation=other(prompt.relation or 0, len(RELATIONS))))[random.integers(2)]
    if colours is not None:
        if len(set(colours)) == 2 and random.integers(2):
            return replace(prompt, colours=colours[::-1])
        return replace(prompt, colours=(other(colours[0], len(COLOURS)), *colours[1:]))
    changed = other(nouns[0], len(NOUNS))
    while changed in nouns:
        changed = other(nouns[0], len(NOUNS))
    return replace(prompt, nouns=(changed, *nouns[1:]))


def measure(detector: Detector, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Split -> category -> accuracy on matching prompts, false accepts on altered ones, number of renders."""
    random, facts = np.random.default_rng(HELD_OUT_SEED), {}
    for split in ("seen", "unseen_combinations"):
        renders = [example(split, index, HELD_OUT_SEED) for index in range(count)]
        found = detector.find(as_images(scene for scene, _ in renders))
        verdicts: dict[str, list[tuple[bool, bool]]] = {}
        for (_, prompt), nouns in zip(renders, found, strict=True):
            pair = adheres(nouns, prompt), adheres(nouns, altered(prompt, random))
            verdicts.setdefault(prompt.category, []).append(pair)
        facts[split] = {
            category: {
                "accuracy": float(np.mean([fits for fits, _ in verdicts[category]])),
                "false_accepts": float(np.mean([passes for _, passes in verdicts[category]])),
                "num_renders": len(verdicts[category]),
            }
            for category in CATEGORIES
            if category in verdicts
        }
    return facts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(WEIGHTS), help="safetensors file (default: the shipped one)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of the one-cycle schedule")
    parser.add_argument("--held-out", type=int, default=6000, help="renders of each split to measure on")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    detector = Detector().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=args.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps)
    began, loss_mean = time.time(), None
    for step in (bar := tqdm(range(args.steps), mininterval=10)):
        scenes = [training_scene(step * args.batch_size + i) for i in range(args.batch_size)]
        presence, labels = targets(scenes)
        images = corrupt(as_images(scenes), generator).to(memory_format=torch.channels_last)
        predicted, *values = detector(images)
        weight = presence * (presence > 0.3)
        loss = 10 * nn.functional.binary_cross_entropy_with_logits(predicted[:, 0], presence)
        for logits, label in zip(values, labels.unbind(1), strict=True):
            errors = nn.functional.cross_entropy(logits, label, reduction="none")
            loss = loss + (weight * errors).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_mean = loss.item() if loss_mean is None else 0.98 * loss_mean + 0.02 * loss.item()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss_mean:.4f}")

    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in detector.state_dict().items()
    }
    detector.load_state_dict(weights)  # measure the rounded weights
    facts = {
        **measure(detector.eval(), args.held_out),
        "num_parameters": sum(p.numel() for p in detector.parameters()),
        "training_pictures": args.steps * args.batch_size,
        "seconds": round(time.time() - began),
        "optimizer": "AdamW, one-cycle learning rate, last weights",
        "learning_rate": args.learning_rate,
        "batch_size": args.batch_size,
        "dtype": "float16",
        "script": "examples/train_detector.py",
    }
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out)
    out.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps({split: facts[split] for split in ("seen", "unseen_combinations")}, indent=1))


if __name__ == "__main__":
    main()
