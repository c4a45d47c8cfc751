"""Kills: what is left after many SIGKILLs at random moments, against an undisturbed run, byte for byte.

    python benchmarks/faults.py [recording ...] [--campaigns 10] [--json benchmarks/results/faults.json]

A campaign starts the command in several processes at once, kills each at a random moment, starts all again, kills all
again, and lets a last one end; then every file is compared. Processes are forked from this one, after its imports
(--fresh: new interpreters). What is killed is a function of CAMPAIGNS below: another long command gets an entry there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "faults"))
from killing import (
    contents,
    end,
    files_of_recording,
    is_recording,
    kill_and_restart,
    record_arguments,
    save_tiny_teacher,
    start,
    state_of_recording,
)


def recording(folder: Path, campaigns: int, fresh: bool) -> list[dict[str, Any]]:
    """3 processes, 2 rounds a campaign."""
    teacher = save_tiny_teacher(folder / "teacher")
    size = {"num_trajectories": 1600, "shard_size": 16}
    end(start(record_arguments(teacher, folder / "undisturbed", **size), folder / "log", fresh), folder / "log")
    expected, found = contents(folder / "undisturbed"), []
    for seed in range(campaigns):
        out = folder / f"killed-{seed}"
        rounds = kill_and_restart(
            record_arguments(teacher, out, **size), folder / "log", processes=3, rounds=2, most=25, seed=seed,
            fresh=fresh, progress=lambda out=out: files_of_recording(out), writing=lambda out=out: is_recording(out),
            look=lambda out=out: state_of_recording(out),
        )  # fmt: skip
        found.append({"rounds": rounds, "files": len(expected), "equal": contents(out) == expected})
        print(json.dumps(found[-1]), flush=True)
    return found


CAMPAIGNS: dict[str, Callable[[Path, int, bool], list[dict[str, Any]]]] = {"recording": recording}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(CAMPAIGNS)}; all if not given")
    parser.add_argument("--campaigns", type=int, default=10)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    for name in args.what or CAMPAIGNS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            campaigns = CAMPAIGNS[name](Path(folder), args.campaigns, args.fresh)
        results[name] = {
            "kills": sum(r["killed"] for c in campaigns for r in c["rounds"]),
            "half_written": sum(r.get("half_written", 0) for c in campaigns for r in c["rounds"]),
            "campaigns": len(campaigns),
            "equal": sum(c["equal"] for c in campaigns),
            "fresh_interpreters": args.fresh,
            "minutes": (time.monotonic() - began) / 60,
            "details": campaigns,
        }
        print(f"{name}: {results[name]['kills']} kills, {results[name]['equal']} of {len(campaigns)} equal")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
