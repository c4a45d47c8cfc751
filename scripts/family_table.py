"""The documentation's table of families (docs/families.md), from the registry and from what the tests run.

python scripts/family_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import diffusers
from tiny import PIPELINES, TINY

from ardistill.families import FAMILIES
from ardistill.teacher import given_times


def table() -> list[str]:
    """Markdown lines."""
    lines = ["| transformer | conditioned on | text keys | identity tests | record to export | stock call |"]
    lines.append("|---|---|---|---|---|---|")
    whole = {TINY[x.tiny].class_name: PIPELINE_OF.get(name) for name, x in PIPELINES.items()}
    whole = {name: pipeline or FAMILIES[name].pipeline for name, pipeline in whole.items()}
    timed = {TINY[x.tiny].class_name for x in PIPELINES.values() if x.given_times}
    for name, family in FAMILIES.items():
        if not hasattr(diffusers, name):  # registered by the tests
            continue
        cases = [case for case, tiny in TINY.items() if tiny.class_name == name]
        cells = [
            f"`{name}`",
            "prompts" if family.encode else "classes",
            (family.text or "apart") if family.encode else "–",
            ", ".join(cases),
            f"tiny `{whole[name]}`" if name in whole else "not run",
            ", ".join(f"`{x}=`" for x in given_times(whole.get(name, family.pipeline)) if name in timed) or "own grid",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


PIPELINE_OF = {"flux2": "Flux2KleinPipeline"}
"""Pipeline of the tests -> its class, where it is not the family's usual one."""
if __name__ == "__main__":
    print("\n".join(table()))
