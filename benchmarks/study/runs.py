"""The closed list of the study's runs, written down before the first of them started; 36 at most.

All on ``zoo/fashion`` (guidance 1.25): 4,096 trajectories of seed 0, 1,000 optimiser steps of 256 evaluations (64
trajectories at S = 4), AdamW 5e-4 with cosine decay, EMA 0.98; 2,000 held-out noises. Both kinds of inputs cost
the same: the rollout is the training pass. A run is its name; what it does not say is the default.
"""

from __future__ import annotations

from typing import Any

DEFAULT: dict[str, Any] = {
    "num_steps": 4,
    "history_layers": 0,
    "mask": "M4",
    "target": "state",
    "output": "solver",
    "inputs": "teacher",
    "seed": 0,
    "max_steps": 1000,
    "num_trajectories": 4096,
}
SETUPS = {
    "state": {"target": "state", "output": "solver"},
    "anchored": {"target": "anchored", "output": "solver"},
    "paper": {"target": "denoised", "output": "direct"},
}

RUNS: dict[str, dict[str, Any]] = {
    # What decides: target and output, times inputs, for both arms.
    **{
        f"{setup}-{inputs}-n{layers}": {**options, "inputs": inputs, "history_layers": layers}
        for setup, options in SETUPS.items()
        for inputs in ("teacher", "student", "mixed")
        for layers in (0, 2)
    },
    # How many layers, which steps, how many steps: in the set-up that led after the first six runs (before them the list
    # had named anchored on the student's inputs here).
    "state-teacher-n1": {"history_layers": 1},
    "state-teacher-n7": {"history_layers": 7},
    "state-teacher-n2-m2": {"history_layers": 2, "mask": "M2"},
    "state-teacher-n2-m3": {"history_layers": 2, "mask": "M3"},
    **{
        f"state-teacher-n{layers}-s{steps}": {"history_layers": layers, "num_steps": steps}
        for steps in (2, 8)
        for layers in (0, 2)
    },
    "kd": {"num_steps": 1},
    # Seeds of the headline, likewise.
    **{
        f"{name}-seed{seed}": {**SETUPS[setup], "inputs": inputs, "history_layers": layers, "seed": seed}
        for name, setup, inputs, layers in (
            ("state-teacher-n0", "state", "teacher", 0),
            ("state-teacher-n2", "state", "teacher", 2),
        )
        for seed in (1, 2)
    },
}
assert len(RUNS) <= 36, len(RUNS)
