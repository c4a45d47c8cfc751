"""A recipe whose arms train in seconds; tests change parts of it."""

SMALL = {
    "record": {"teacher": "zoo/fashion", "guidance_scale": 1.25, "num_trajectories": 8, "solver_steps": 4},
    "held_out": {"num_trajectories": 12},
    "distill": {
        "evaluations_per_step": 8,
        "history_layers": 0,
        "training": {"max_steps": 2, "learning_rate": 1e-4, "ema_decay": 0.5, "tracker": None},
    },
    "finetune": {"real": "real.safetensors", "training": {"max_steps": 2, "batch_size": 2, "tracker": None}},
    "arms": {
        "plain": {},
        "history": {"history_layers": 2, "num_trajectories": 4, "training": {"seed": 1}},
        "kd": {"num_steps": 1},
        "uniform": {"conditioning": "uniform"},
        "uneven": {"num_steps": 2, "knots": [0, 1, 4], "history_layers": 2},
        "tuned": {"finetune": "history", "adversarial": {"hidden": 8, "warmup_steps": 0}},
    },
}
