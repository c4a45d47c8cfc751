"""Inside a step nothing is copied from or to the host and nothing waits, beyond what the stock transformer does."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from pretend_device import DEVICE, PretendDevice
from tiny import ONE_EACH, TINY, open_gates

from ardistill.config import AdversarialConfig, MatchingConfig
from ardistill.core.knots import Knots
from ardistill.core.pipeline import _FixedKnots
from ardistill.student import Student, StudentConfig
from ardistill.student.sample import sample
from ardistill.teacher import Teacher
from ardistill.training.discriminator import Discriminator
from ardistill.training.losses import inputs_and_targets
from ardistill.training.matching import FakeScore, Matching

KNOTS = Knots("flow", (1000.0, 500.0), (0.0, 0.5, 1.0), (1.0, 0.5, 0.0))
STEPS = KNOTS.num_steps


def _on_device(name: str, **options):
    """A teacher and a student of a family on the device, with noise and a condition there, all used once already."""
    tiny = TINY[name]
    teacher = Teacher(tiny.transformer(), DDIMScheduler(), latent_shape=tiny.latents)
    student = Student.from_teacher(teacher, StudentConfig(KNOTS, 2, **{"mask": "M4"} | options)).to(DEVICE)
    open_gates(student)
    noise = torch.randn(2, *tiny.latents, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    condition = student.family.place(tiny.condition(2), DEVICE)
    sample(student, noise, condition)  # tables of positions are moved at the first call
    return teacher.to(DEVICE), student, noise, condition


def _stock_calls(teacher, latents, condition, times):
    """Call the stock transformer as its pipeline would: with arguments that are on the device already."""
    transformer, family = teacher.transformer, teacher.family
    condition, _ = family.take_guidance(transformer, latents, condition, 1.0)
    latents, condition = family.cast(transformer, latents, condition)
    timesteps = [torch.full((len(latents),), t, device=DEVICE) for t in times]
    calls = [family.inputs(transformer, latents, x, condition) for x in timesteps]

    def run(trains=False):
        for arguments in calls:
            found = family.output(transformer, transformer(**arguments, **family.options), latents)
            if trains:  # what chooses tokens by a mask waits in its backward pass, too
                found.square().mean().backward()

    return run


def _events(mode, run):
    mode.events.clear()
    run()
    return sorted(mode.events)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_sample_crosses_no_more_often_than_the_stock_transformer(name):
    with PretendDevice() as mode:
        teacher, student, noise, condition = _on_device(name)
        ours = _events(mode, lambda: sample(student, noise, condition))
        stock = _stock_calls(teacher, noise, condition, KNOTS.timesteps)
        stock()
        assert ours == _events(mode, stock)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_training_pass_crosses_no_more_often_than_the_stock_transformer(name):
    with PretendDevice() as mode:
        teacher, student, noise, condition = _on_device(name)
        inputs = torch.stack([noise] * STEPS, dim=1)
        student.train()
        teacher.transformer.train().requires_grad_(True)
        ours = _events(mode, lambda: student(inputs, condition).square().mean().backward())
        repeated = {key: x.repeat_interleave(STEPS, dim=0) for key, x in condition.items()}
        stock = _stock_calls(teacher, inputs.flatten(0, 1), repeated, KNOTS.timesteps[:1])
        stock()
        assert ours == _events(mode, lambda: stock(trains=True))


@pytest.mark.parametrize("options", [{"output": "direct"}, {"target": "anchored"}, {"guidance_range": (1.0, 4.0)}])
def test_no_kind_of_student_crosses(options):
    with PretendDevice() as mode:
        _, student, noise, condition = _on_device("dit", **options)
        assert _events(mode, lambda: sample(student, noise, condition)) == []
        inputs = torch.stack([noise] * STEPS, dim=1)
        assert _events(mode, lambda: student(inputs, condition, on_policy=True)) == []
        states = torch.stack([noise] * (STEPS + 1), dim=1)
        target = student.config.target
        assert _events(mode, lambda: inputs_and_targets(states, states[:, 1:], KNOTS, target)) == []


@pytest.mark.parametrize("options", [{}, {"output": "direct"}, {"target": "anchored"}])
def test_the_pipelines_steps_copy_nothing_and_a_call_its_times_once(options):
    with PretendDevice() as mode:
        knots = _FixedKnots(StudentConfig(KNOTS, 2, **{"mask": "M4"} | options), None, None)
        state = torch.ones(2, 4, 8, 8, device=DEVICE)
        assert _events(mode, lambda: knots.set_timesteps(device=DEVICE)) == ["to device"]
        for timestep in knots.timesteps:
            knots.layout.cache = {0: [None] * (knots.step_index + 1)}
            assert _events(mode, lambda t=timestep: knots.step(state, t, state)) == []


def test_a_discriminator_copies_only_its_noise_and_noise_levels():
    with PretendDevice() as mode:
        teacher, _, noise, condition = _on_device("dit")
        found = Discriminator(teacher, AdversarialConfig())
        assert not [name for name in found.state_dict() if name.startswith("levels")]
        generator = torch.Generator()
        levels = found.draw_levels(len(noise), generator)
        drawn = lambda: found.look(noise, condition, levels, generator)  # noqa: E731
        assert _events(mode, drawn) == ["to device", "to device"]


def test_matching_copies_only_its_noise_noise_levels_and_guidance():
    with PretendDevice() as mode:
        teacher, _, drawn, condition = _on_device("dit")
        options = MatchingConfig(lora_rank=2, updates=1)
        matching, generator = Matching(FakeScore(teacher, options), options), torch.Generator()
        assert _events(mode, lambda: matching.network(drawn, drawn[:, 0, 0, 0], condition)) == []
        noised = lambda: matching._noised(drawn, generator)  # noqa: E731
        assert set(_events(mode, noised)) == {"to device"}
        once = _events(mode, noised)
        assert _events(mode, lambda: matching.student_loss(drawn, condition, generator)) == [*once, "to device"]


def test_what_waits_is_counted():
    with PretendDevice() as mode:
        x = torch.arange(3.0, device=DEVICE)
        for wait in (lambda: bool((x > 1).all()), lambda: x[x > 1], lambda: x.nonzero(), lambda: x.equal(x)):
            assert _events(mode, wait) == ["wait"]
        assert _events(mode, lambda: (x[x.long()], x.repeat_interleave(2), x.masked_fill(x > 1, 0.0))) == []
