"""The README's table of families, from the registry and from what the tests run.

python docs/family_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from tiny_families import TINY
from tiny_pipelines import PIPELINES

from ardistill.families import FAMILIES


def table() -> list[str]:
    """Markdown lines."""
    lines = ["| transformer | conditioned on | text keys | identity tests | record to export | checkpointing |"]
    lines.append("|---|---|---|---|---|---|")
    whole = {TINY[TINY_OF.get(name, name)].class_name for name in PIPELINES}
    for name, family in FAMILIES.items():
        cases = [case for case, tiny in TINY.items() if tiny.class_name == name]
        cells = [
            f"`{name}`",
            "prompts" if family.encode else "classes",
            family.text or "apart",
            ", ".join(cases),
            f"tiny `{family.pipeline}`" if name in whole else "not run",
            "yes" if family.has_checkpointing else "not in diffusers",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


TINY_OF = {"pixart": "pixart-sigma"}
"""Pipeline of the tests -> its transformer, where the names differ."""

if __name__ == "__main__":
    print("\n".join(table()))
