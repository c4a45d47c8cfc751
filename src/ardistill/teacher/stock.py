"""What a stock diffusers pipeline draws: whether its own scheduler steps between a student's knots.

A student without history whose steps are the solver's needs no code of ours: the teacher's pipeline class draws it with
guidance off, where a first-order scheduler of diffusers has the student's states and times. A pipeline's scheduler has
them by itself (its *own grid*), or the pipeline's call takes them as a list. Which is the case is not known by class:
schedulers are set as the pipeline would set them, and compared.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import diffusers
import numpy as np

from ardistill.core.knots import Knots
from ardistill.families.grids import scheduler_grid, uniform_grid
from ardistill.teacher.schedule import select_knots
from ardistill.teacher.teacher import Teacher


class StockDrawing(NamedTuple):
    """What a diffusers pipeline needs to draw a student without this package: a scheduler, and the call's arguments."""

    scheduler: Any
    """Scheduler of the pipeline's folder."""
    arguments: dict[str, Any]
    """Arguments of the pipeline's call besides labels or prompt: numbers, and lists of numbers."""


def stock_drawing(teacher: Teacher, knots: Knots) -> StockDrawing:
    """The scheduler and the arguments by which a stock pipeline steps between the knots of a student.

    Args:
        teacher: The student's teacher, which has the pipeline's class and scheduler.
        knots: The student's.

    Raises:
        ValueError: The pipeline cannot.
    """
    for candidate in _candidates(teacher, knots):
        if _agrees(candidate.scheduler, knots):
            return candidate
    takes = "other" if given_times(teacher.pipeline_class) else "no"
    raise ValueError(
        f"{teacher.pipeline_class} takes {takes} times in its call, and the student's knots are not the grid of "
        f"{knots.num_steps} steps of a scheduler of diffusers; distil with --knots stock"
    )


def stock_knots(teacher: Teacher, solver: Knots, num_steps: int) -> Knots:
    """The solver's states that a stock pipeline's own grid of ``num_steps`` goes through, with that grid's times.

    Args:
        teacher: The teacher, which has the pipeline's class and scheduler.
        solver: The knots of the recorded solver.
        num_steps: Steps of the student.

    Raises:
        ValueError: The grid's states are not among the solver's.
    """
    uniform = select_knots(solver, [round(i * solver.num_steps / num_steps) for i in range(num_steps + 1)])
    for own in _own_grids(teacher, uniform):
        nearest = [int(np.abs(_levels(solver)[:-1] - level).argmin()) for level in _scheduled_levels(own)[:-1]]
        found = replace(
            select_knots(solver, [*nearest, solver.num_steps]), timesteps=tuple(float(t) for t in own.timesteps)
        )
        if _agrees(own, found):
            return found
    raise ValueError(
        f"the {solver.num_steps} solver steps do not go through the states of {teacher.pipeline_class}'s grid of "
        f"{num_steps} steps; record with a multiple of {num_steps} as --solver_steps, or leave --knots stock out"
    )


def call_parameters(pipeline_class: str) -> set[str]:
    """Names of the arguments that the call of a pipeline class of diffusers takes."""
    return set(inspect.signature(getattr(diffusers, pipeline_class).__call__).parameters)


def given_times(pipeline_class: str) -> list[str]:
    """Lists of times that a pipeline's call takes and follows: ``sigmas``, ``timesteps``, both or none."""
    if pipeline_class == "AllegroPipeline":  # it sets its scheduler again, without them
        return []
    return sorted({"sigmas", "timesteps"} & call_parameters(pipeline_class))


def _candidates(teacher: Teacher, knots: Knots) -> Iterator[StockDrawing]:
    """Schedulers set as the pipeline may set them, the simplest call first."""
    taken, scheduler = given_times(teacher.pipeline_class), teacher.scheduler
    given: dict[str, Any]
    for own in _own_grids(teacher, knots):
        yield StockDrawing(own, {"num_inference_steps": knots.num_steps})
    if "flow" not in knots.prediction_type:
        solver = _first_order(scheduler, knots)
        if "timesteps" in taken and "timesteps" in inspect.signature(solver.set_timesteps).parameters:
            given = {"timesteps": [round(t) for t in knots.timesteps]}
            solver.set_timesteps(**given)
            yield StockDrawing(solver, given)
    elif taken and knots.prediction_type == "flow":  # no pipeline of a reversed one hands them on
        sigmas = {"sigmas": [round(sigma, 8) for sigma in knots.sigma[:-1]]} if "sigmas" in taken else {}
        times = {"timesteps": [round(t, 0 if sigmas else 5) for t in knots.timesteps]} if "timesteps" in taken else {}
        for given in (sigmas, sigmas | times):  # not every pipeline that takes both takes them together
            if given:  # times alone: sigmas follow from them
                solver = _flow_matching(scheduler)
                solver.set_timesteps(**given)
                yield StockDrawing(solver, given)


def _own_grids(teacher: Teacher, knots: Knots) -> Iterator[Any]:
    """Schedulers that have a grid of so many steps by themselves, set to it as the family's pipeline sets it."""
    steps, scheduler, grid = knots.num_steps, teacher.scheduler, teacher.family.grid
    if "flow" not in knots.prediction_type:
        solver = _first_order(scheduler, knots)
        solver.set_timesteps(steps)
        yield solver
    elif grid(scheduler, 2) == uniform_grid(scheduler, 2):
        shift, terminal = _static_shift(knots, bool(scheduler.config.get("shift_terminal")))
        for pins in (False, True) if shift > 0 and terminal is None else (False,):
            solver = _flow_matching(scheduler, shift, terminal, pins)
            solver.set_timesteps(sigmas=grid(solver, steps), mu=solver.config.base_shift)
            yield solver
    elif grid is scheduler_grid and _is_plain_flow_matching(scheduler):
        solver = _flow_matching(scheduler, scheduler.config.shift)
        solver.set_timesteps(steps)
        yield solver
    elif scheduler.config.get("invert_sigmas"):
        solver = type(scheduler).from_config(scheduler.config)
        solver.set_timesteps(sigmas=grid(solver, steps))
        yield solver
    elif scheduler.config.get("use_flow_sigmas"):
        options: dict[str, Any] = {"solver_order": 1, "final_sigmas_type": "zero"}
        if "UniPC" in type(scheduler).__name__:
            options["disable_corrector"] = [*range(steps)]
        solver = type(scheduler).from_config(scheduler.config, **options)
        solver.set_timesteps(steps)
        yield solver


def _is_plain_flow_matching(scheduler: Any) -> bool:
    config = scheduler.config
    return isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler) and not config.use_dynamic_shifting


def _static_shift(knots: Knots, has_terminal: bool) -> tuple[float, float | None]:
    """The shift, and the terminal shift, that turn a uniform grid into these knots; fixed ones serve all sizes.

    Without a terminal shift, the second knot gives the shift. With one, all distances from 1 are stretched until the
    last knot is at the terminal shift, so that the ratio of those of the second and third knot gives the shift.
    """
    steps = knots.num_steps
    first, second = (1 - i / steps for i in (1, 2))
    if steps == 1:
        return 1.0, None
    if not has_terminal:
        return knots.sigma[1] * (1 - first) / (first * (1 - knots.sigma[1])), None
    a, b = (1 - knots.sigma[1]) * (1 - second), (1 - knots.sigma[2]) * (1 - first)
    divisor = a * first - b * second
    return (b * (1 - second) - a * (1 - first)) / divisor if steps > 2 and divisor else 1.0, knots.sigma[-2]


def _flow_matching(scheduler: Any, shift: float = 1.0, terminal: float | None = None, pins: bool = False) -> Any:
    """Flow matching under one shift for all sizes.

    Args:
        scheduler: The teacher's.
        shift: How far sigmas are shifted.
        terminal: The last sigma, which the others are stretched to; None: they are not.
        pins: Whether the shift is a dynamic one whose two ends are equal, as Bria's pipeline passes other sigmas to a
            scheduler without a dynamic shift.
    """
    options: dict[str, Any] = {"use_dynamic_shifting": pins, "shift_terminal": terminal, "shift": shift}
    if pins:
        options |= {"base_shift": math.log(shift), "max_shift": math.log(shift), "time_shift_type": "exponential"}
    return diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, **options)


def _first_order(scheduler: Any, knots: Knots) -> Any:
    """DPM-Solver++ of order 1, which is DDIM (Lu et al. 2022, arXiv:2211.01095), on the trailing grid.

    diffusers' own DDIM takes the time of the next state by a whole-numbered difference, which misses the grid where the
    number of steps does not divide that of the training. CogVideoX's is used all the same: no other class has its shift
    of the signal-to-noise ratio.
    """
    if "snr_shift_scale" in scheduler.config:
        options: dict[str, Any] = {"timestep_spacing": "trailing", "set_alpha_to_one": knots.sigma[-1] == 0}
        return diffusers.CogVideoXDDIMScheduler.from_config(scheduler.config, **options)
    return diffusers.DPMSolverMultistepScheduler.from_config(
        scheduler.config,
        solver_order=1,
        algorithm_type="dpmsolver++",
        timestep_spacing="trailing",
        final_sigmas_type="zero" if knots.sigma[-1] == 0 else "sigma_min",
    )


def _levels(knots: Knots) -> np.ndarray:
    """Noise level of each state as diffusers' schedulers have it: sigma of flow matching, else sigma / alpha."""
    return np.array(knots.sigma) / (1.0 if "flow" in knots.prediction_type else np.maximum(knots.alpha, 1e-8))


def _scheduled_levels(scheduler: Any) -> np.ndarray:
    """Noise level of each state that a scheduler, which was set, goes through."""
    if hasattr(scheduler, "sigmas"):
        levels = np.array(scheduler.sigmas)
        return 1 - levels if scheduler.config.get("invert_sigmas") else levels
    signal, step = scheduler.alphas_cumprod, scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    times = [int(scheduler.timesteps[0]), *(int(t) - step for t in scheduler.timesteps)]
    found = np.array([float(signal[t] if t >= 0 else scheduler.final_alpha_cumprod) for t in times])
    return np.sqrt(1 - found) / np.maximum(np.sqrt(found), 1e-8)


def _agrees(scheduler: Any, knots: Knots) -> bool:
    """Whether a scheduler that was set has the states and times of a student, up to float32."""
    return (
        len(scheduler.timesteps) == knots.num_steps
        and np.allclose(scheduler.timesteps, knots.timesteps, rtol=1e-5, atol=1e-3)
        and np.allclose(_scheduled_levels(scheduler), _levels(knots), rtol=1e-4, atol=1e-6)
    )
