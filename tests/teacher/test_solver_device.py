"""A step of the solver copies nothing to the device and waits for nothing, but what the transformer does itself."""

from collections import Counter

import pytest
import torch
from diffusers import DDIMScheduler
from pretend_device import DEVICE, PretendDevice
from tiny import TINY, save

from ardistill.core.knots import Knots
from ardistill.teacher import Teacher


def grid(steps):
    levels = tuple(i / steps for i in range(steps + 1))
    return Knots("flow", tuple(1000 * (1 - x) for x in levels[:-1]), levels, levels[::-1])


def events_of_solving(teacher, noise, condition, steps):
    with PretendDevice() as mode:
        teacher.to(DEVICE)
        solved = teacher.solve_ode(noise, condition, grid(steps))
        return Counter(mode.events), solved.states.cpu()


def events_of_a_call(teacher, noise, condition):
    with PretendDevice() as mode:
        noise, times = noise.to(DEVICE), torch.full((len(noise),), 500.0, device=DEVICE)
        condition = {name: value.to(DEVICE) for name, value in condition.items()}
        teacher.family.call(teacher.transformer, noise, times, condition)  # what is made once is made now
        before = len(mode.events)
        with torch.no_grad():
            teacher.family.call(teacher.transformer, noise, times, condition)
        return Counter(mode.events[before:])


@pytest.mark.parametrize("name", ["dit", "sd3", "flux", "pixart-sigma", "wan"])
def test_a_step_adds_the_transformers_own_transfers_alone(name):
    tiny = TINY[name]
    teacher = Teacher(tiny.transformer(), DDIMScheduler(), 2.0, latent_shape=tiny.latents)
    condition = tiny.condition(3)
    if teacher.takes_text:  # there are no text encoders
        teacher._unconditional = {key: x[:1] for key, x in tiny.condition(1).items() if key != "guidance"}
    noise = torch.randn(3, *tiny.latents, generator=torch.Generator().manual_seed(1))
    expected = teacher.solve_ode(noise, condition, grid(3)).states
    two, _ = events_of_solving(teacher, noise, condition, 2)
    three, found = events_of_solving(teacher, noise, condition, 3)
    given = {key: x for key, x in condition.items() if key != "guidance" or teacher.embeds_guidance}
    own = events_of_a_call(teacher, noise, given)
    assert three - two == own
    assert three["wait"] == 3 * own["wait"]  # not even before the first step: scales and labels came from the host
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_negative_prompt_is_copied_to_a_device_once(tmp_path):
    teacher = Teacher.from_pretrained(save("pixart", tmp_path / "teacher"), guidance_scale=2.0, device="cpu")
    condition = teacher.encode(["a", "red cat"])
    noise = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(1))
    expected = teacher.solve_ode(noise, condition, teacher.knots(2)).states
    with PretendDevice() as mode:
        teacher.to(DEVICE)
        counts = []
        for _ in range(3):
            before = len(mode.events)
            found = teacher.solve_ode(noise, condition, teacher.knots(2)).states
            counts.append(Counter(mode.events[before:])["to device"])
        assert torch.allclose(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    rows = len(condition) + 1  # each tensor of the condition, the guidance scales, and the noise
    assert counts[0] > counts[1] == counts[2] and counts[0] - counts[1] >= len(condition) and counts[1] >= rows


@pytest.mark.parametrize("scale,rows", [(1.0, [3, 3]), (2.0, [6, 6])])
def test_both_halves_of_guidance_are_one_call_and_none_is_made_without_guidance(teacher, scale, rows):
    guided = Teacher(teacher.transformer, teacher.scheduler, scale)
    seen = []
    count = lambda module, _, given: seen.append(len(given["hidden_states"]))  # noqa: E731
    teacher.transformer.register_forward_pre_hook(count, with_kwargs=True)
    noise = torch.randn(3, *teacher.sample_shape)
    guided.solve_ode(noise, {"class_labels": torch.arange(3)}, teacher.knots(2))
    assert seen == rows
