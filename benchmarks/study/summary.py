"""Tables of the study, from the committed results alone: docs/results.md.

python benchmarks/study/summary.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from runs import RUNS

from ardistill.evaluation import paired_bootstrap

HERE = Path(__file__).parent
COLUMNS = {
    "fd_to_teacher": ("FD to teacher", 4),
    "fd": ("FD to data", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "accuracy": ("accuracy", 3),
    "feature_distance_to_teacher": ("distance to teacher", 4),
}


def results() -> dict[str, dict[str, Any]]:
    """Name of a run -> what study.py wrote, in the order of the list."""
    paths = {name: HERE / "results" / f"{name}.json" for name in RUNS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """One row a run, the teacher first."""
    lines = [f"| run | {' | '.join(title for title, _ in COLUMNS.values())} |", f"|---|{'---|' * len(COLUMNS)}"]
    rows = {"teacher": next(iter(found.values()))["teacher"]} | {name: x["figures"] for name, x in found.items()}
    for name, figures in rows.items():
        cells = [f"{figures[key]:.{digits}f}" for key, (_, digits) in COLUMNS.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def pairs(found: dict[str, dict[str, Any]]) -> list[str]:
    """Every run with history beside the same one without."""
    lines = ["| with history | minus without: distance to teacher | 95 % interval |", "|---|---|---|"]
    for name in found:
        without = name.replace("-n2", "-n0")
        if "-n2" in name and without in found:
            values = [torch.tensor(found[x]["distances"]) for x in (name, without)]
            interval = paired_bootstrap(*values)
            lines.append(f"| {name} | {interval.difference:+.4f} | {interval.low:+.4f} to {interval.high:+.4f} |")
    return lines


def main() -> None:
    found = results()
    floor = next(iter(found.values()))["floor"]
    text = [
        "# Results of the study",
        "",
        f"{len(found)} of the {len(RUNS)} runs of the closed list (`benchmarks/study/runs.py`) are made; written by",
        "`python benchmarks/study/summary.py` from their committed results. `zoo/fashion`, S = 4 if the name does not",
        "say, 1,000 steps, 2,000 held-out noises; FD in the features of our Fashion-MNIST classifier, real images at",
        f"{floor:.3f}. The names say target and output, inputs, and N.",
        "",
        *table(found),
        "",
        *pairs(found),
    ]
    (HERE.parent.parent / "docs" / "results.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
