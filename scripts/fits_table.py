"""The documentation's table of models and cards (docs/scaling.md), from `ardistill cost`'s counts; minutes per model.

python scripts/fits_table.py [--write docs/scaling.md]

The configurations in docs/models are put together from public sources; no weights are read.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

from ardistill.config import CostConfig
from ardistill.families import class_name, family_of
from ardistill.planning import transformer_config
from ardistill.planning.counting import count
from ardistill.planning.fit import smallest_card
from ardistill.planning.memory import stages

ROOT = Path(__file__).parent.parent
MODELS = {
    "PixArt-Sigma": "pixart-sigma",
    "SD3.5-large": "sd3.5-large",
    "FLUX.1-dev": "flux.1-dev",
    "Wan 2.1 T2V 14B, one frame": "wan2.1-t2v-14b",
    "Qwen-Image": "qwen-image",
}
"""Name -> its configuration in docs/models."""
PLAN = {"mixed_precision": "bf16", "weights": "bfloat16", "batch_size": 1, "gradient_checkpointing": True}
ADAPTERS = PLAN | {"lora_rank": 32}
COLUMNS = {
    "`record`": ("record", ADAPTERS),
    "adapters": ("distill", ADAPTERS),
    "adapters, int8": ("distill", ADAPTERS | {"weights": "int8"}),
    "adapters, nf4": ("distill", ADAPTERS | {"weights": "nf4"}),
    "all weights, eight cards": ("distill", PLAN | {"num_devices": 8}),
    "`sample`": ("sample", ADAPTERS),
}
"""Column -> stage and options."""
MARKS = "<!-- table: fits -->", "<!-- end of table -->"


def rows() -> list[str]:
    """Markdown lines."""
    lines = ["| transformer | weights | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for model, file in MODELS.items():
        facts = transformer_config(str(ROOT / "docs" / "models" / f"{file}.json"))
        family, plans = family_of(class_name(facts)), {}
        for options in (ADAPTERS, PLAN):
            config = CostConfig(model, **options)
            plans[config.lora_rank] = count(facts, family, config).memory
        cells = []
        for stage, options in COLUMNS.values():
            config = replace(CostConfig(model), **options)
            size = sum(stages(plans[config.lora_rank], config)[stage].values())
            cells.append(f"{size / 2**30:,.0f} GiB: {smallest_card(size)}")
        lines.append(f"| {model} | {plans[0].weights.total / 1e9:.1f} B | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    args = parser.parse_args()
    lines = rows()
    if args.write:
        page, (first, last) = args.write.read_text(), MARKS
        args.write.write_text(re.sub(f"{first}.*?{last}", "\n".join((first, *lines, last)), page, flags=re.S))


if __name__ == "__main__":
    main()
