"""torch.compile on the tiny instance of every family: folded pass and sampling, graph breaks counted.

python benchmarks/compile_families.py [--backend eager] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import TINY, open_gates

from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import knots_from_scheduler


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def try_one(name: str, backend: str, gated: bool) -> dict[str, Any]:
    """Compile the transformer of a student; both passes against the uncompiled ones."""
    knots = knots_from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 4)
    student = Student(TINY[name].transformer(), StudentConfig(knots, 2, gated=gated)).eval()
    open_gates(student)
    generator = torch.Generator().manual_seed(1)
    inputs, condition = torch.randn(2, 4, *TINY[name].latents, generator=generator), TINY[name].condition(2)
    row: dict[str, Any] = {}
    with torch.no_grad():
        expected = student(inputs, condition), sample(student, inputs[:, 0], condition)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        student.transformer.forward = torch.compile(student.transformer.forward, backend=backend)
        for part, run in (
            ("folded", lambda: student(inputs, condition)),
            ("sampling", lambda: sample(student, inputs[:, 0], condition)),
        ):
            try:
                found = run()
                row[f"{part}_difference"] = difference(found, expected[part == "sampling"])
            except Exception as error:
                row[f"{part}_error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            row[f"{part}_graph_breaks"] = sum(torch._dynamo.utils.counters["graph_break"].values())
            row[f"{part}_graphs"] = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
            torch._dynamo.utils.counters.clear()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="eager", help="eager counts breaks; inductor makes kernels")
    parser.add_argument("--families", nargs="+", default=list(TINY))
    parser.add_argument("--joint", action="store_true", help="one softmax over all steps instead of gates")
    parser.add_argument("--json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = {}
    for name in args.families:
        rows[name] = try_one(name, args.backend, not args.joint)
        print(name, json.dumps(rows[name]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"backend": args.backend, "families": rows}, indent=1))


if __name__ == "__main__":
    main()
