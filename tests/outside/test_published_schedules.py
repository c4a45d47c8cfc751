"""Schedulers as they are published: which options are followed, and the solver's grid."""

import diffusers
import pytest
import torch
from publish import STORAGE, Storage, publish, read

from ardistill.families import family_of
from ardistill.teacher import Teacher
from ardistill.teacher.schedule import check_scheduler, knots_from_scheduler


@pytest.mark.parametrize("family", STORAGE)
def test_case_07_no_published_scheduler_is_refused(family):
    config = read(family, "scheduler/scheduler_config.json")
    check_scheduler(getattr(diffusers, config["_class_name"]).from_config(config))


def test_case_07_what_only_chooses_how_the_ode_is_solved_is_accepted():
    for scheduler in (
        diffusers.DDIMScheduler(clip_sample=True, timestep_spacing="leading", steps_offset=1),
        diffusers.EulerDiscreteScheduler(),
        diffusers.EulerAncestralDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(solver_order=3, lower_order_final=False),
        diffusers.DEISMultistepScheduler(),
        diffusers.SASolverScheduler(),
        diffusers.FlowMatchHeunDiscreteScheduler(),
    ):
        assert knots_from_scheduler(scheduler, 4).num_steps == 4


def test_case_07_the_last_state_is_the_schedulers():
    """An option that the class does not have changes nothing: HunyuanDiT's DDPM is published with set_alpha_to_one."""
    assert knots_from_scheduler(diffusers.DDIMScheduler(set_alpha_to_one=False), 4).sigma[-1] > 0
    config = read("hunyuandit", "scheduler/scheduler_config.json")
    assert knots_from_scheduler(diffusers.DDPMScheduler.from_config(config), 4).sigma[-1] == 0
    solver = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min")
    solver.set_timesteps(4)
    knots = knots_from_scheduler(solver, 4)
    assert knots.sigma[-1] / knots.alpha[-1] == pytest.approx(float(solver.sigmas[-1]), rel=1e-5)


def test_case_07_clipping_that_is_not_followed_is_said(tmp_path, caplog):
    folder = publish("dit", tmp_path / "teacher", Storage())
    Teacher.from_pretrained(folder)
    assert "clip_sample" not in caplog.text
    diffusers.DDIMScheduler(clip_sample=True).save_pretrained(folder / "scheduler")
    Teacher.from_pretrained(folder)
    assert "clip_sample is not followed" in caplog.text and "set it to false" in caplog.text


def test_case_07_a_shift_terminal_holds_without_dynamic_shifting():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1)
    knots = knots_from_scheduler(scheduler, 4)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert torch.allclose(torch.tensor(knots.sigma), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_case_08_sd3_goes_down_to_its_own_last_sigma(steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    knots = knots_from_scheduler(scheduler, steps, grid=family_of("SD3Transformer2DModel").grid)
    scheduler.set_timesteps(steps)
    assert torch.allclose(torch.tensor(knots.sigma), scheduler.sigmas, atol=1e-6)
    assert steps != 28 or knots.sigma[-2] == pytest.approx(0.0089, abs=1e-4)
