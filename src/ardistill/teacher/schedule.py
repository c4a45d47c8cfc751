"""The solver's knots under the noise schedule of a diffusers scheduler."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from ardistill.core.knots import PREDICTION_TYPES, Knots
from ardistill.families.grids import uniform_grid

_SOLVER_OPTIONS: dict[str, tuple[Any, ...]] = {
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "stochastic_sampling": (False,),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "algorithm_type": ("dpmsolver++", "dpmsolver", "deis", "data_prediction", "noise_prediction"),
}
"""Options of diffusers' schedulers that change the path from noise to image -> the values that leave it unchanged."""
_UNFIT = {
    "LCM": "it belongs to a model that was distilled already",
    "TCD": "it belongs to a model that was distilled already",
    "Inverse": "it runs from image to noise",
}
"""Part of a scheduler's class name -> why its model cannot be a teacher."""


def _is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is a flow-matching one; otherwise it has to be variance-preserving."""
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose path from noise to image the solver would not follow.

    Options that only choose how the same ODE is integrated are accepted: the solver's order, ``timestep_spacing`` and
    ``steps_offset`` (the solver always starts at pure noise), ``lower_order_final``, ``variance_type``, and classes
    that add noise, such as DDPM. ``clip_sample`` is accepted and ignored, because a student cannot follow it.

    Args:
        scheduler: A scheduler of diffusers.

    Raises:
        ValueError: The class or an option is not supported; the message names it and the value to set.
    """
    name, config = type(scheduler).__name__, scheduler.config
    for part, reason in _UNFIT.items():
        if part in name:
            raise ValueError(
                f"{name} is no teacher's scheduler: {reason}; set another _class_name in "
                "scheduler/scheduler_config.json, such as DDIMScheduler, or name the model that it was made from"
            )
    is_known = _is_flow(scheduler) or (hasattr(scheduler, "alphas_cumprod") and "prediction_type" in config)
    if not is_known or "num_train_timesteps" not in config:
        raise ValueError(
            f"unknown scheduler {name}; expected one with alphas_cumprod (DDIM, DDPM, DPMSolverMultistep, ...) or "
            "FlowMatchEulerDiscreteScheduler"
        )
    known = inspect.signature(type(scheduler).__init__).parameters
    for option, values in _SOLVER_OPTIONS.items():
        value = config.get(option, values[0])
        if option in known and (value or False) not in values:
            raise ValueError(
                f"the option {option}={value!r} of {name} changes the path from noise to image and is not followed; "
                f"set {option} to {json.dumps(values[0])} in scheduler/scheduler_config.json"
            )
    if config.get("use_flow_sigmas") and config.get("final_sigmas_type", "zero") != "zero":
        raise ValueError(
            f"the option final_sigmas_type={config.final_sigmas_type!r} of {name} leaves noise in the image and is not "
            'followed; set final_sigmas_type to "zero" in scheduler/scheduler_config.json'
        )
    if config.get("use_flow_sigmas") and config.get("prediction_type") != "flow_prediction":
        raise ValueError(
            f"use_flow_sigmas=True of {name} goes with the prediction_type flow_prediction, got "
            f"{config.get('prediction_type')!r}; set one of both in scheduler/scheduler_config.json"
        )


def _shifted(sigma: list[float], config: Any, mu: float | None) -> list[float]:
    """Apply the scheduler's shift to flow-matching sigmas; ``mu`` is the shift if it is dynamic."""
    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift", config.get("flow_shift", 1.0))
        found = [shift * s / (1 + (shift - 1) * s) for s in sigma]
    else:
        if mu is None:
            raise ValueError("dynamic shifting needs mu, which the family computes from the size of the latents")
        weight = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        found = [weight * s / (weight * s + 1 - s) for s in sigma]
    if config.get("shift_terminal"):
        stretch = (1 - found[-1]) / (1 - config.shift_terminal) or 1.0
        found = [1 - (1 - s) / stretch for s in found]
    return found


def _last_signal(scheduler: Any) -> float:
    """alpha² of a variance-preserving scheduler's last state: 1 for the clean image, or the value at timestep 0."""
    known, config = inspect.signature(type(scheduler).__init__).parameters, scheduler.config
    noisy = "set_alpha_to_one" in known and not config.get("set_alpha_to_one", True)
    noisy |= "final_sigmas_type" in known and config.get("final_sigmas_type") == "sigma_min"
    return float(scheduler.alphas_cumprod[0]) if noisy else 1.0


def select_knots(knots: Knots, indices: Sequence[int]) -> Knots:
    """The knots at ``indices``, which rise; a step keeps the conditioning time of the knot that it starts from."""
    return Knots(
        knots.prediction_type,
        tuple(knots.timesteps[i] for i in indices[:-1]),
        tuple(knots.alpha[i] for i in indices),
        tuple(knots.sigma[i] for i in indices),
    )


def knots_from_scheduler(
    scheduler: Any,
    num_steps: int,
    mu: float | None = None,
    shift_times: bool = True,
    grid: Callable[[Any, int], list[float]] = uniform_grid,
) -> Knots:
    """The grid of ``num_steps`` solver steps under the noise schedule of a diffusers scheduler.

    For variance-preserving schedulers (those with ``alphas_cumprod``) the timesteps are round(T (1 - i/S)) - 1, as in
    diffusers' ``timestep_spacing="trailing"``, whatever spacing the scheduler is configured with: the other spacings do
    not start at pure noise (Lin et al. 2023, arXiv:2305.08891). For flow matching (``FlowMatch...``, or
    ``use_flow_sigmas``, as in Wan's UniPC) sigma goes from 1 to 0 as ``grid`` spaces it, and is then shifted.

    Args:
        scheduler: A scheduler of diffusers.
        num_steps: Number of solver steps.
        mu: The shift, for schedulers with ``use_dynamic_shifting``.
        shift_times: Whether the network is conditioned on the shifted times, as nearly all are.
        grid: (scheduler, num_steps) -> flow-matching sigmas before the shift, noisiest first.

    Raises:
        ValueError: The noise schedule is unknown, an option is not supported, or there are more steps than training
            timesteps.
    """
    config = scheduler.config
    check_scheduler(scheduler)
    if not 1 <= num_steps <= config.num_train_timesteps:
        raise ValueError(f"expected 1 to {config.num_train_timesteps} solver steps, got {num_steps}")
    if _is_flow(scheduler):
        uniform = grid(scheduler, num_steps)
        sigma = _shifted(uniform, config, mu)
        alpha, times = [1 - s for s in sigma], sigma if shift_times else uniform
        kind = "reversed_flow" if config.get("invert_sigmas") else "flow"  # its time is that of the image's part
        timesteps = tuple(config.num_train_timesteps * t for t in (times if kind == "flow" else alpha))
        return Knots(kind, timesteps, (*alpha, 1.0), (*sigma, 0.0))
    if config.prediction_type not in PREDICTION_TYPES[:3]:
        raise ValueError(f"unknown prediction type {config.prediction_type!r}; known: {PREDICTION_TYPES[:3]}")
    times = [round(config.num_train_timesteps * (1 - i / num_steps)) - 1 for i in range(num_steps)]
    signal = [*(float(scheduler.alphas_cumprod[t]) for t in times), _last_signal(scheduler)]
    if config.prediction_type == "epsilon" and signal[0] < 1e-7:
        raise ValueError(
            "the first timestep is pure noise (rescale_betas_zero_snr), of which a model of prediction_type epsilon "
            "says nothing; set rescale_betas_zero_snr to false in scheduler/scheduler_config.json"
        )
    return Knots(
        config.prediction_type,
        tuple(float(t) for t in times),
        tuple(a**0.5 for a in signal),
        tuple((1 - a) ** 0.5 for a in signal),
    )
