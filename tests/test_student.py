"""Identity tests of the mechanism, fp32, to 1e-5."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from ardistill.history import MASKS, history_attention
from ardistill.sampling import sample
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher

STEPS = 4


def make(teacher, history_layers=2, mask="M4", target="state", output="solver", steps=STEPS):
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(steps), history_layers, mask, target, output))
    if output == "direct":  # heads that differ, or a wrong head would go unseen
        for name in student.family.head:
            torch.nn.init.normal_(getattr(student.transformer, name).later_weight, std=0.1)
    return student


def batch(teacher, count=3, steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, steps, *teacher.sample_shape, generator=generator)
    return inputs, {"class_labels": torch.arange(count) % 5}


@pytest.mark.parametrize("mask", MASKS)
def test_history_attention_equals_dense_mask(mask):
    torch.manual_seed(0)
    tokens = 5
    query, key, value = torch.randn(3, 2 * STEPS, 2, tokens, 8)
    visible = torch.zeros(STEPS, tokens, STEPS, tokens, dtype=torch.bool)
    for step in range(STEPS):
        visible[step, :, MASKS[mask](step)] = True

    def unfold(x):  # (b*s, h, t, d) -> (b, h, s*t, d)
        return x.unflatten(0, (2, STEPS)).transpose(1, 2).flatten(2, 3)

    dense = F.scaled_dot_product_attention(
        unfold(query), unfold(key), unfold(value), attn_mask=visible.view(STEPS * tokens, -1)
    )
    assert torch.allclose(unfold(history_attention(query, key, value, STEPS, mask)), dense, atol=1e-5)


@pytest.mark.parametrize("output", ["solver", "direct"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("history_layers", [0, 2, 3])
def test_folded_equals_cached(teacher, history_layers, mask, output):
    student = make(teacher, history_layers, mask, output=output)
    inputs, condition = batch(teacher)
    folded = student(inputs, condition)
    cache: dict = {}
    for step in range(STEPS):
        cached = student.step(inputs[:, step], step, condition, cache)
        assert (cached - folded[:, step]).abs().max() < 1e-5 * folded[:, step].abs().max()


def test_no_history_is_the_teachers_forward(teacher):
    student = make(teacher, 0, target="state", output="direct")
    for name in student.family.head:
        head = getattr(student.transformer, name)
        head.later_weight.data[:] = head.weight.data
    inputs, condition = batch(teacher)
    for step, timestep in enumerate(student.config.knots.timesteps):
        expected = teacher.predict(inputs[:, step], timestep, condition)
        assert torch.allclose(student(inputs, condition)[:, step], expected, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_untrained_student_is_the_teachers_solver(teacher, prediction_type, steps):
    """Against diffusers' own DDIM and Euler, at step counts where its trailing grid has no rounding of its own."""
    if prediction_type == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    else:
        scheduler = DDIMScheduler(prediction_type=prediction_type, timestep_spacing="trailing", clip_sample=False)
        scheduler.set_timesteps(steps)
    teacher = Teacher(teacher.transformer, scheduler)
    inputs, condition = batch(teacher)
    noise = state = inputs[:, 0]
    for timestep in scheduler.timesteps:
        times = timestep.expand(len(state))
        prediction = teacher.transformer(state, times, condition["class_labels"]).sample[:, :4]
        state = scheduler.step(prediction, timestep, state).prev_sample
    ours = sample(make(teacher, 0, steps=steps), noise, condition)[:, -1]
    solved = teacher.solve_ode(noise, condition, teacher.knots(steps)).states[:, -1]
    assert (ours - state).abs().max() < 1e-5 * state.abs().max()
    assert (solved - state).abs().max() < 1e-5 * state.abs().max()


@pytest.mark.parametrize("mask", MASKS)
def test_no_leak_from_later_steps_or_other_samples(teacher, mask):
    student = make(teacher, 3, mask)
    inputs, condition = batch(teacher)
    before = student(inputs, condition)
    changed = inputs.clone()
    changed[1, 2] += 1
    after = student(changed, condition)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert torch.equal(before[1, :2], after[1, :2])
    seen = (before[1] - after[1]).flatten(1).abs().amax(1) > 0
    # Stacked layers reach back further than one step (M2), never forward.
    assert seen.tolist() == [False, False, True, mask in ("M2", "M4")]


def test_checkpointing_gives_equal_gradients(teacher):
    inputs, condition = batch(teacher)
    gradients = []
    for checkpointing in (False, True):
        student = make(teacher, 2).train()
        if checkpointing:
            student.enable_gradient_checkpointing()
        student(inputs, condition).square().mean().backward()
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("target,output", [("state", "solver"), ("denoised", "direct"), ("anchored", "solver")])
def test_saved_and_reloaded_is_the_same(teacher, tmp_path, target, output):
    student = make(teacher, 2, target=target, output=output)
    inputs, condition = batch(teacher)
    student.save_pretrained(tmp_path)
    again = Student.from_pretrained(tmp_path)
    assert again.config == student.config
    assert torch.equal(again(inputs, condition), student(inputs, condition))
    assert torch.equal(sample(again, inputs[:, 0], condition), sample(student, inputs[:, 0], condition))


def test_training_mode_drops_no_labels(teacher):
    student = make(teacher, 2)
    inputs, condition = batch(teacher)
    assert torch.equal(student.train()(inputs, condition), student.eval()(inputs, condition))


def test_deepcopy_has_its_own_history(teacher):
    student = make(teacher, 2)
    other = copy.deepcopy(student)
    inputs, condition = batch(teacher)
    assert torch.equal(student(inputs, condition), other(inputs, condition))
    assert other.transformer.transformer_blocks[0].attn1.history is other.history is not student.history


def test_bad_input_is_named(teacher):
    with pytest.raises(ValueError, match="0 to 3 history layers"):
        make(teacher, 4)
    with pytest.raises(ValueError, match="unknown mask 'M5'"):
        make(teacher, 2, "M5")
    with pytest.raises(ValueError, match="needs output='direct'"):
        make(teacher, 2, target="denoised")
    inputs, condition = batch(teacher)
    with pytest.raises(ValueError, match=r"expected inputs \(b, 4"):
        make(teacher)(inputs[:, :2], condition)
    with pytest.raises(RuntimeError, match="called by itself"):
        make(teacher).transformer(inputs[:, 0], torch.zeros(3), condition["class_labels"])
    with pytest.raises(ValueError, match="guidance scale"):
        Teacher(teacher.transformer, teacher.scheduler, guidance_scale=0.5)
    with pytest.raises(ValueError, match=r"labels in 0\.\.4, got 7"):
        teacher.solve_ode(inputs[:, 0], {"class_labels": torch.full((3,), 7)}, teacher.knots(2))
    with pytest.raises(ValueError, match="expected noise of shape"):
        teacher.solve_ode(inputs[:, 0, :, :4], condition, teacher.knots(2))
