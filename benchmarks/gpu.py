"""How fast this package is on your card: one script, eight minutes on an H100, compilation included.

    python benchmarks/gpu.py                                # all parts, into benchmarks/results/gpu-<card>.json
    python benchmarks/gpu.py --reference DIR                # beside the authors' code, a checkout of alsdudrla10/ARD
    python benchmarks/gpu.py --parts "sample 1, step"       # these parts; the others keep what the file has
    python benchmarks/gpu.py --size tiny --device cpu       # whether it runs at all; its times mean nothing

DiT-XL/2 at 256 pixels with random weights, so nothing is downloaded. A part that fails or runs out of its time is noted
with its error, and the next part goes on; the file is written after each arm of a part. A slower card measures more of
them with more `--minutes`. Please send the file back in an issue. `python benchmarks/performance.py` makes
docs/performance.md of the files in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMITS = {
    "machine": 10,
    "pass bf16": 95,
    "step": 105,
    "sample 1": 90,
    "record": 60,
    "sample many": 60,
    "equality": 30,
    "quickstart": 20,
    "sd35": 25,
    "teacher": 10,
    "pass tf32": 30,
    "processes": 150,
}
"""Part -> seconds after which no further arm of it begins, of eight minutes; the most important parts first."""
GRACE = 60
"""Seconds after that until a part is stopped."""
START = 90
"""Seconds that a process may take to start."""
RESULTS = Path(__file__).parent / "results"


class Results:
    """What was found so far, in a file that is replaced as a whole.

    Args:
        path: The file; named after the card if not given.
        size: Size of the models.
    """

    def __init__(self, path: str | None, size: str) -> None:
        self.path = Path(path) if path else None
        self.found: dict[str, Any] = {"size": size, "environment": {}, "parts": {}}

    def set_environment(self, environment: dict[str, Any]) -> None:
        """Take the facts of the machine, and what the file has of other parts measured in the same environment."""
        if self.found["environment"]:
            return
        self.found["environment"] = json.loads(json.dumps(environment))
        if self.path is None:
            card = re.sub(r"[^a-z0-9]+", "-", environment["card"].lower().removeprefix("nvidia ")).strip("-")
            self.path = RESULTS / f"gpu-{card}.json"
        before = json.loads(self.path.read_text()) if self.path.exists() else {}
        if all(before.get(x) == self.found[x] for x in ("size", "environment")):
            self.found["parts"] = before["parts"] | self.found["parts"]
        self.write()

    def start(self, part: str) -> None:
        """Forget earlier figures of a part."""
        self.found["parts"][part] = {"arms": {}}

    def add(self, part: str, arm: str, figures: dict[str, Any]) -> None:
        """Take an arm's figures; where operations, time and this machine's peak are known, with the share of that."""
        peak = self.found["parts"].get("machine", {}).get("arms", {}).get(figures.get("precision"), {}).get("tflops")
        if peak and "flops" in figures:
            figures = figures | {"share_of_peak": figures["flops"] / (figures["ms"] / 1000) / (1e12 * peak)}
        self.found["parts"][part]["arms"][arm] = figures
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{part:<12} {arm:<44} {shown}", flush=True)
        self.write()

    def finish(self, part: str, facts: dict[str, Any]) -> None:
        """Take a part's seconds and its error, if it had one."""
        self.found["parts"][part] |= facts
        shown = f"  {facts['error']}" if "error" in facts else ""
        print(f"{part:<12} {facts.get('seconds', 0):.0f} s{shown}", flush=True)
        self.write()

    def write(self) -> None:
        """Replace the file."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(self.found, indent=1) + "\n")
            os.replace(unfinished, self.path)


def supervise(
    work: Callable[..., None],
    limits: dict[str, float],
    options: dict[str, Any],
    results: Results,
    total: float,
) -> None:
    """Run parts in one process, and in a new one after each part that failed to end in time or ended its process.

    Args:
        work: As `gpu_parts.work.work`, importable by a new process.
        limits: Parts and their seconds.
        options: For ``work``.
        results: Where everything goes.
        total: Seconds for all parts together.
    """
    end, waiting = time.monotonic() + total, list(limits)
    while waiting and time.monotonic() < end:
        lost = _run_until_lost(work, waiting, limits, options, results, end)
        if lost:
            part = waiting.pop(0)
            if part not in results.found["parts"]:
                results.start(part)
            results.finish(part, {"error": lost})
    for part in waiting:
        results.start(part)
        results.finish(part, {"error": f"not begun: the {total:.0f} s of all parts are over"})


def _run_until_lost(
    work: Callable[..., None],
    waiting: list[str],
    limits: dict[str, float],
    options: dict[str, Any],
    results: Results,
    end: float,
) -> str:
    """Run the waiting parts in a process, taking off the list those that are done; why the first one left was lost."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(list(waiting), options, there))
    process.start()
    there.close()
    limit, since = float(START), time.monotonic()
    try:
        while waiting:
            if not here.poll(max(0.0, min(since + limit, end) - time.monotonic())):
                return f"stopped after {time.monotonic() - since:.0f} s, of {limit:.0f} at most"
            kind, content = here.recv()
            if kind == "environment":
                results.set_environment(content)
                results.start(waiting[0])
            elif kind == "arm":
                results.add(waiting[0], *content)
                continue
            elif kind == "done":
                results.finish(waiting.pop(0), content)
                if waiting:
                    results.start(waiting[0])
            limit, since = limits[waiting[0]] if waiting else 0.0, time.monotonic()
        return ""
    except EOFError:
        process.join()
        return f"its process ended with status {process.exitcode}"
    finally:
        if waiting:
            process.kill()
        process.join()


def measure(*arguments: Any) -> None:
    """Run parts in a process of their own; only that one imports torch."""
    from gpu_parts.work import work

    work(*arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that the command line names; 0 if none has an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", help=f"some of: {', '.join(LIMITS)}; all if not given")
    parser.add_argument("--size", choices=("xl", "tiny"), default="xl", help="DiT-XL/2, or a model of three layers")
    parser.add_argument("--device", help="cuda, cpu, ...; the best device of the machine if not given")
    parser.add_argument("--reference", help="checkout of alsdudrla10/ARD, the authors' code; it needs timm")
    parser.add_argument("--minutes", type=float, default=8, help="how long all parts may take; 8 if not given")
    parser.add_argument("--json", help="file of the results; benchmarks/results/gpu-<card>.json if not given")
    args = parser.parse_args(arguments)
    names = [x.strip() for x in args.parts.split(",")] if args.parts else list(LIMITS)
    if unknown := [x for x in names if x not in LIMITS]:
        parser.error(f"unknown parts {unknown}; known: {', '.join(LIMITS)}")
    results = Results(args.json, args.size)
    limits = {name: LIMITS[name] * args.minutes / 8 for name in names}
    options = {"size": args.size, "device": args.device, "reference": args.reference, "limits": limits}
    began = time.monotonic()
    supervise(measure, {name: x + GRACE for name, x in limits.items()}, options, results, 60 * args.minutes)
    parts = results.found["parts"]
    failed = [f"{part}: {x['error']}" for part, x in parts.items() if "error" in x]
    failed += [
        f"{part}, {arm}: {y['error']}" for part, x in parts.items() for arm, y in x["arms"].items() if "error" in y
    ]
    print("\n".join([f"{time.monotonic() - began:.0f} s; results in {results.path}", *failed]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
