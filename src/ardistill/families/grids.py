"""How flow-matching pipelines space their sigmas, and how far a scheduler with dynamic shifting shifts them."""

from __future__ import annotations

import math
from typing import Any


def uniform_grid(scheduler: Any, num_steps: int) -> list[float]:
    """Sigmas before the shift, uniform from 1 to 1 / ``num_steps``, as most pipelines pass them."""
    return [1 - i / num_steps for i in range(num_steps)]


def scheduler_grid(scheduler: Any, num_steps: int) -> list[float]:
    """Sigmas before the shift, as the scheduler spaces them where its pipeline passes none.

    ``FlowMatch...`` goes down to its own least sigma, which is that of timestep 1, shifted; with ``use_flow_sigmas``
    the steps are a little shorter than ``1 / num_steps``, and a DPM-Solver starts a little below 1.
    """
    config = scheduler.config
    least = 1 / config.num_train_timesteps
    if config.get("use_flow_sigmas"):
        width = (1 - least) / num_steps
        first = 1 - least if "DPMSolver" in type(scheduler).__name__ else 1.0
        return [first - width * i for i in range(num_steps)]
    if not config.get("use_dynamic_shifting"):
        least = config.shift * least / (1 + (config.shift - 1) * least)
    return [1 - (1 - least) * i / max(num_steps - 1, 1) for i in range(num_steps)]


def mu_by_tokens(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Shift of Flux and of most others, which pack latents by 2 by 2: linear in the image tokens."""
    return linear_mu(config, math.prod(sample_shape[-2:]) // 4)


def linear_mu(config: Any, tokens: int) -> float:
    """The line through the scheduler's two lengths of the image sequence and their shifts."""
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return base + (most - base) / (last - first) * (tokens - first)
