"""Train the arms of recipes side by side on one GPU, and end in time; the same call again goes on where this one ended.

    python benchmarks/study/card.py recipes/study_card_*.yaml [--minutes 8] [--parallel 6]

A tiny model leaves most of a card idle, so that several trainings take little longer than one. Each arm is a process of
`study.py`, which writes the arm's result when it ends; those that still run when the time is over are stopped, and have
their checkpoints. An arm that goes on from another one begins once that one has its result.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ardistill.studies import Recipe

HERE = Path(__file__).parent


class Arm(NamedTuple):
    """One training."""

    recipe: Path
    name: str
    before: tuple[str, ...]
    """Arms of the recipe that it goes on from."""
    results: Path

    @property
    def is_done(self) -> bool:
        return (self.results / f"{self.name}.json").exists()

    @property
    def is_ready(self) -> bool:
        return all((self.results / f"{name}.json").exists() for name in self.before)

    def start(self) -> subprocess.Popen[bytes]:
        """Run it in a process of its own, which writes a log beside the results."""
        self.results.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(HERE / "study.py"), "--recipe", str(self.recipe), "--only", self.name]
        with open(self.results / f"{self.name}.log", "ab") as log:
            return subprocess.Popen([*command, "--results", str(self.results)], stdout=log, stderr=log)


def arms_of(recipes: Sequence[Path], results: Path) -> list[Arm]:
    """All arms, the first one of each recipe first, then the second ones."""
    found = []
    for number, path in enumerate(recipes):
        recipe, folder = Recipe(path), results / path.stem.removeprefix("study_")
        lineages = recipe.lineages(recipe.arms)
        found += [
            (rank, number, Arm(path, name, tuple(lineages[name][:-1]), folder)) for rank, name in enumerate(recipe.arms)
        ]
    return [arm for _, _, arm in sorted(found, key=lambda x: x[:2])]


def run(arms: Sequence[Arm], parallel: int, seconds: float) -> list[Arm]:
    """Run arms until they are done or the time is over; returns those that have no result."""
    end, waiting = time.monotonic() + seconds, [arm for arm in arms if not arm.is_done]
    running: dict[Arm, subprocess.Popen[bytes]] = {}
    try:
        while (waiting or running) and time.monotonic() < end:
            for arm, process in [*running.items()]:
                if process.poll() is not None:
                    del running[arm]
                    print(
                        f"{arm.results.name} {arm.name}: {'done' if arm.is_done else 'failed, see its log'}", flush=True
                    )
            ready = [arm for arm in waiting if arm.is_ready][: parallel - len(running)]
            for arm in ready:
                waiting.remove(arm)
                running[arm] = arm.start()
            if not running:
                break  # what waits goes on from an arm that failed
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return [arm for arm in arms if not arm.is_done]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the arms of the recipes that the command line names; 0 if all have a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--parallel", type=int, default=6, help="trainings at a time")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args(arguments)
    left = run(arms_of(args.recipes, args.results), args.parallel, 60 * args.minutes)
    print(f"without a result: {', '.join(f'{x.results.name} {x.name}' for x in left) or 'none'}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
