"""What 16 bits cost: states stored in float16, and states computed in bfloat16.

    python benchmarks/half_precision.py [--count 16] [--json benchmarks/results/half_precision.json]

The embedded teacher's guided trajectories in 24 solver steps, recorded in float32, stored in float16, and computed in
bfloat16 (mixed_precision bf16); and the teacher going on from each state that float16 has rounded to the image, against
going on from the exact one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from ardistill import Teacher, TrajectoryDataset, record
from ardistill.trajectories import select_knots

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"mixed_precision": "no"},
    "float16": {"mixed_precision": "no", "dtype": "float16"},
    "bf16": {"mixed_precision": "bf16"},
}
"""Name -> options of ``record``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=1.25)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in VARIANTS.items():
            record(teacher, f"{folder}/{name}", args.count, num_steps=(4,), shard_size=args.count, **options)
            found[name] = TrajectoryDataset(f"{folder}/{name}", 4)
        bytes_ = {name: sum(found[name].store.sizes().values()) for name in ("float32", "float16")}
        exact, half, bf16 = (found[name].stacked() for name in VARIANTS)
        manifest = found["float32"].manifest
        images = []
        for i in range(4):  # the last state is the image
            rest = select_knots(manifest.knots, range(6 * i, 25))
            ends = [teacher.solve_ode(x[0][:, i], x[2], rest).states[:, -1] for x in (exact, half)]
            images.append(float((ends[0] - ends[1]).square().mean()))
    error = exact[0] - half[0]  # (n, 5, c, h, w)
    results = {
        "trajectories": args.count,
        "bytes": bytes_,
        "rms_error_per_state": error.square().mean((0, 2, 3, 4)).sqrt().tolist(),
        "rms_error_per_state_of_bf16": (exact[0] - bf16[0]).square().mean((0, 2, 3, 4)).sqrt().tolist(),
        "rms_per_state": exact[0].square().mean((0, 2, 3, 4)).sqrt().tolist(),
        "largest_error": float(error.abs().max()),
        "mean_squared_error_of_a_step": float(error.square().mean()),
        "mean_squared_error_of_the_image_from_each_state": images,
    }
    print(json.dumps(results, indent=1))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
