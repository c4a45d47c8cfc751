"""The summary of the text-to-image benchmark: summary.json, docs/text-to-image-results.md and its picture.

Run by ``python benchmarks/text_to_image/text_to_image.py --summary``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ardistill.evaluation import BootstrapInterval, markdown_table, paired_bootstrap, sample_grid
from ardistill.files.pixels import from_bytes
from ardistill.studies import Recipe
from ardistill.zoo.scenes.data import CATEGORIES, prompts

HERE = Path(__file__).parent
RESULTS = HERE / "results"
HANDOVERS = RESULTS / "handovers.json"
RECIPE = HERE.parent.parent / "recipes" / "study_scenes.yaml"
DOCS = HERE.parent.parent / "docs"
SPLITS = {"seen": 2400, "unseen_combinations": 1600, "unseen_wordings": 600}
"""Split -> number of held-out prompts, with equal shares of the categories."""
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
"""Pairs of arms whose adherence is compared prompt by prompt."""
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
"""Number of seen prompts that teacher and student draw in turn."""
SHOWN = 2
"""Prompts of each category in the picture."""


def results() -> dict[str, list[dict[str, Any]]]:
    """Arm -> results for all its seeds, in the order of the arms."""
    found: dict[str, list[dict[str, Any]]] = {}
    drawn = ["teacher", "dpm-solver-8", "dpm-solver-4", "euler-8", "euler-4", "euler-4-knots"]
    for name in [*drawn, *Recipe(RECIPE).arms]:
        if (RESULTS / f"{name}.json").exists():
            text = (RESULTS / f"{name}.json").read_text()
            found.setdefault(re.sub(r"-seed\d+$", "", name), []).append(json.loads(text))
    return found


def shares(result: dict[str, Any], split: str) -> dict[str, float]:
    """Category (and "overall") -> adherence."""
    return {x["category"]: x["share"] for x in result["splits"][split]["adherence"]}


def passed(seeds: list[dict[str, Any]], split: str) -> Tensor:
    """For each prompt, the share of an arm's seeds whose picture adheres to it."""
    return torch.tensor([[float(x) for x in seed["splits"][split]["verdicts"]] for seed in seeds]).mean(0)


def differences(found: dict[str, list[dict[str, Any]]], split: str) -> dict[str, dict[str, BootstrapInterval]]:
    """ "A - B" -> category (and "overall") -> mean difference in adherence on the same prompts and noise."""
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
    """The mean of values, with largest minus smallest in brackets if there are several."""
    spread = f" ({max(values) - min(values):.3f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"


def table(found: dict[str, list[dict[str, Any]]], split: str) -> str:
    """A Markdown table with one line per arm (all seeds together), then real renders."""
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
    """A Markdown table with one line per pair of arms, with 95 % intervals."""
    lines = [["difference", *kinds]]
    for pair, parts in compared.items():
        lines.append([pair, *(f"{x.difference:+.3f} [{x.low:+.3f}, {x.high:+.3f}]" for x in parts.values())])
    return markdown_table(lines)


def handover_table() -> list[str]:
    """Lines of the section on handovers; none if ``--handovers`` was not run."""
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
        rows[name] = from_bytes(torch.stack(strip.split(strip.shape[1], -1)))
    sample_grid(rows, DOCS / "text_to_image.png", [x.text for x in asked])
    lines = [INTRODUCTION, *handover_table()]
    for split, count in SPLITS.items():
        lines += ["", f"## {split.replace('_', ' ').capitalize()}, {count} prompts", "", table(found, split)]
        lines += ["", difference_table(compared[split], list(shares(found["teacher"][0], split)))]
    shown = "![The first prompts of each category, the same noise down each column](text_to_image.png)"
    (DOCS / "text-to-image-results.md").write_text("\n".join([*lines, "", shown, ""]))
