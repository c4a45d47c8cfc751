"""Identity tests of every family on the real diffusers class, fp32."""

import copy
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from tiny import GATE, TINY
from tiny_students import STEPS, batch, make, near

from ardistill.config import TrainingConfig
from ardistill.core.history import MASKS
from ardistill.families import FAMILIES, family_of, register_family
from ardistill.publishing import export
from ardistill.student import Student
from ardistill.student.sample import sample
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.training.losses import regression_loss
from ardistill.trajectories import TrajectoryDataset, record


def test_every_family_has_an_instance():
    assert {tiny.class_name for tiny in TINY.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_without_history_it_is_the_untouched_model(name):
    inputs, condition = batch(name)
    student = make(name, 0)
    untouched = TINY[name].transformer()
    family = family_of(untouched)
    a, b = torch.tensor(student.config.knots.coefficients("state")).unbind(1)
    found = student(inputs, condition)
    for step, timestep in enumerate(student.config.knots.timesteps):
        times = torch.full((len(inputs),), timestep)
        prediction = family.call(untouched, inputs[:, step], times, condition)[:, : inputs.shape[2]]
        assert near(found[:, step], a[step] * inputs[:, step] + b[step] * prediction)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("output", ["solver", "direct"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", TINY)
def test_folded_equals_cached(name, mask, output, gated):
    student = make(name, 3, mask, output, gated=gated)
    inputs, condition = batch(name)
    with torch.no_grad():
        folded = student(inputs, condition)
        cache: dict = {}
        for step in range(STEPS):
            assert near(student.step(inputs[:, step], step, condition, cache), folded[:, step])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", TINY)
def test_nothing_leaks_from_later_steps_or_other_samples(name, mask):
    student = make(name, 2, mask)
    inputs, condition = batch(name)
    changed = inputs.clone()
    changed[1, 2] += 1
    with torch.no_grad():
        before, after = student(inputs, condition), student(changed, condition)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1, :2], after[1, :2])
    seen = (before[1] - after[1]).flatten(1).abs().amax(1) > 0
    assert seen.tolist() == [False, False, True, mask in ("M2", "M4")]


@pytest.mark.parametrize("name", TINY)
def test_training_mode_changes_nothing(name):
    inputs, condition = batch(name)
    student = make(name)
    with torch.no_grad():
        assert near(student.train()(inputs, condition), student.eval()(inputs, condition))


class DenseOracle(torch.overrides.TorchFunctionMode):
    """One attention over image and text of all steps of a sample, what a step must not see masked out.

    Gated: one over a step's own tokens and, times the gate, one over the earlier images.

    It knows of history only what the paper says: which steps are seen, and that of earlier steps it is the image. Where
    the image stands comes from the test, and calls are told apart by counting them.
    """

    def __init__(self, calls, steps, mask, image, gate=None):
        super().__init__()
        self.gate = gate
        self.calls, self.steps, self.mask, self.image, self.seen = calls, steps, mask, image, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.seen += 1
        if self.seen - 1 not in self.calls:
            return func(*args, **kwargs)
        query, key, value = args or (kwargs.pop(name) for name in ("query", "key", "value"))
        own, s = kwargs.pop("attn_mask", None), self.steps
        own = own if own is None or own.ndim < 4 else own[:, :1]  # the same for each head
        asking, (rows, _, tokens, dim) = query.shape[2], key.shape
        is_image = torch.zeros(rows // s, tokens, dtype=torch.bool)
        for row in range(rows // s):
            image = self.image[row] if isinstance(self.image, list) else self.image
            is_image[row, image if tokens > self.image_only else slice(None)] = True
        past = torch.zeros(rows // s, s, asking, s, tokens, dtype=torch.bool)
        current, added = torch.zeros_like(past), past.float()
        for step in range(s):
            for earlier in MASKS[self.mask](step)[:-1]:
                past[:, step, :, earlier] = is_image[:, None]
            current[:, step, :, step] = True
            if own is not None:  # of floats, it is added to the logits
                masked = current if own.dtype == torch.bool else added
                masked[:, step, :, step] = own.expand(rows, 1, asking, tokens)[:, 0].unflatten(0, (-1, s))[:, step]

        def unfold(x):
            return x.unflatten(0, (-1, s)).transpose(1, 2).flatten(2, 3)

        scale = kwargs.pop("scale", None) or dim**-0.5
        added = added.flatten(3, 4).flatten(1, 2)[:, None]
        logits = unfold(query) @ unfold(key).transpose(-1, -2) * scale + added

        def seen(visible):
            hidden = ~visible.flatten(3, 4).flatten(1, 2)[:, None]
            return logits.masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num()

        weights = seen(current | past) if self.gate is None else seen(current) + self.gate * seen(past)
        return (weights @ unfold(value)).unflatten(2, (s, asking)).transpose(1, 2).flatten(0, 1)


class LinearOracle(DenseOracle):
    """The same of linear attention, with a weight for each pair of tokens: what follows divides by the last row."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.matmul:
            return func(*args, **(kwargs or {}))
        self.seen += 1
        if self.seen % 2:  # values and keys, then their product and the queries
            self.value, self.key = args
            return func(*args)
        if self.seen // 2 - 1 not in self.calls:
            return func(*args)
        value, key, query = (x.unflatten(0, (-1, self.steps)) for x in (self.value[:, :, :-1], self.key, args[1]))
        weights = torch.einsum("bihdq,bjhkd->bijhqk", query, key)  # (b, s, s, h, t, t): of step i to step j
        own, past = torch.zeros(2, self.steps, self.steps)
        for step in range(self.steps):
            own[step, step] = 1
            past[step, MASKS[self.mask](step)[:-1]] = 1

        def seen(visible):
            kept = weights * visible[None, :, :, None, None, None]
            return torch.einsum("bijhqk,bjhdk->bihdq", kept / (kept.sum((2, 5), keepdim=True) + 1e-15), value)

        found = (seen(own + past) if self.gate is None else seen(own) + self.gate * seen(past)).flatten(0, 1)
        return torch.cat([found, torch.ones_like(found[:, :, :1])], dim=2)


class RowOracle(DenseOracle):
    """The same where each row makes a call of its own, over as many of its prompt's tokens as count."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.nn.functional.scaled_dot_product_attention or len(args[0]) > 1:
            return func(*args, **(kwargs or {}))  # it pools the prompts of all rows in one call
        layer, row = divmod(self.seen, self.rows)
        self.seen += 1
        if layer not in self.calls:
            return func(*args, **kwargs)
        if row == 0:
            self.pairs = []
        query, key, value = args
        self.pairs.append((key[:, :, self.image], value[:, :, self.image]))
        first = row - row % self.steps
        seen = [self.pairs[first + i] for i in MASKS[self.mask](row % self.steps)[:-1]]

        def weights(keys):
            return query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5

        if self.gate is None:
            keys, values = (torch.cat([own, *past], 2) for own, *past in zip((key, value), *seen, strict=True))
            return weights(keys).softmax(-1) @ values
        own = weights(key).softmax(-1) @ value
        if not seen:
            return own
        keys, values = (torch.cat(x, 2) for x in zip(*seen, strict=True))
        return own + self.gate * weights(keys).softmax(-1) @ values


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", TINY)
def test_folded_pass_equals_a_dense_mask_oracle(name, mask, gated):
    inputs, condition = batch(name)
    student, plain = make(name, 2, mask, gated=gated), make(name, 0, mask)
    calls, image, count = TINY[name].oracle
    kind = LinearOracle if student.family.linear[0] else RowOracle if student.family.by_row[0] else DenseOracle
    oracle = kind(calls, STEPS, mask, image, GATE if gated else None)
    oracle.image_only, oracle.rows = count, len(inputs) * STEPS
    with torch.no_grad():
        found = student(inputs, condition)
        with oracle:
            expected = plain(inputs, condition)
    assert near(found, expected)
    assert mask == "M1" or not near(found, plain(inputs, condition), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,mask,gated",
    [(name, "M4", True) for name in TINY]
    + [(name, mask, gated) for name in ("dit", "sd3.5") for mask in MASKS for gated in (False, True)],
)
def test_sequential_pass_has_the_estimates_and_gradients_of_the_folded_one(name, mask, gated):
    inputs, condition = batch(name)
    found = []
    for options in ({}, {"sequential": True}, {"sequential": True, "detach_history": True}):
        student = make(name, 2, mask, gated=gated)
        estimates = student(inputs, condition, **options)
        estimates.square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        found.append((estimates.detach(), gradients))
    (folded, folded_gradients), (sequential, gradients), (detached, detached_gradients) = found
    assert near(sequential, folded) and near(detached, folded)
    assert near(gradients, folded_gradients)
    assert mask == "M1" or not near(detached_gradients, folded_gradients, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_saved_and_reloaded_is_the_same(name, tmp_path):
    for output in ("solver", "direct"):
        student = make(name, 2, output=output).eval()
        inputs, condition = batch(name)
        student.save_pretrained(tmp_path / output)
        again = Student.from_pretrained(tmp_path / output)
        with torch.no_grad():
            assert torch.equal(sample(again, inputs[:, 0], condition), sample(student, inputs[:, 0], condition))


@pytest.mark.parametrize("name", TINY)
def test_one_training_step_lowers_the_loss(name):
    student = make(name, 2)
    inputs, condition = batch(name)
    targets = inputs.flip(1) * 0.5
    optimizer = torch.optim.SGD(student.parameters(), 1e-4)
    losses = []
    for _ in range(2):
        loss, _errors = regression_loss(student(inputs, condition), targets, torch.ones(STEPS))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


def test_deepcopy_keeps_its_own_history():
    student = make("sd3")
    other = copy.deepcopy(student)
    assert other.transformer.transformer_blocks[0].history is other.history is not student.history


def test_rows_of_unequal_prompts_are_as_each_alone():
    """Lumina2's image stands after the prompt, elsewhere in each row."""
    inputs, condition = batch("lumina2-ragged")
    student = make("lumina2-ragged")
    with torch.no_grad():
        together = student(inputs, condition)
        for row in range(2):
            alone = student(inputs[row : row + 1], {name: x[row : row + 1] for name, x in condition.items()})
            assert near(alone, together[row : row + 1])


def test_a_users_own_class_takes_one_call_from_record_to_sample(tmp_path):
    """The class is tests/original_dit.py's; the identities above hold for it, too."""
    DDIMScheduler().save_pretrained(tmp_path / "teacher" / "scheduler")
    TINY["dit-timm"].transformer().save_pretrained(tmp_path / "teacher" / "transformer")
    teacher = Teacher.from_pretrained(tmp_path / "teacher", guidance_scale=2.0)
    record(teacher, tmp_path / "data", 6, solver_steps=4, num_steps=(2,), progress=False)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=2))
    config = TrainingConfig(max_steps=2, batch_size=2, tracker=None)
    distill(student, data, tmp_path / "run", config, progress=False)
    again = Student.from_pretrained(tmp_path / "run")
    noise, condition = torch.randn(2, 4, 8, 8), {"class_labels": torch.tensor([1, 2])}
    assert torch.equal(sample(again, noise, condition), sample(student, noise, condition))
    with pytest.raises(ValueError, match="diffusers has no class DiT"):
        export(student, teacher, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_what_cannot_be_a_family_is_refused():
    row = FAMILIES["DiTTransformer2DModel"]
    with pytest.raises(ValueError, match="registered already"):
        register_family(diffusers.DiTTransformer2DModel, row)
    with pytest.raises(ValueError, match=r"subclass of diffusers.ModelMixin and diffusers.ConfigMixin, got Linear"):
        register_family(torch.nn.Linear, row)
    with pytest.raises(ValueError, match="register_family"):
        family_of("MyTransformer")
    with pytest.raises(ValueError, match="self-attention is linear"):
        family_of("SanaVideoTransformer3DModel")
    with pytest.raises(ValueError, match="within each frame and along the frames of each place by turns"):
        family_of("LatteTransformer3DModel")


@pytest.mark.parametrize("name", ["hunyuan-image", "hunyuan-video15"])
def test_a_distilled_hunyuan_is_no_teacher(name):
    tiny = TINY[name]
    transformer = replace(tiny, options=tiny.options | {"use_meanflow": True}).transformer()
    with pytest.raises(ValueError, match="distilled already"):
        family_of(transformer).call(transformer, torch.randn(2, *tiny.latents), torch.ones(2), tiny.condition(2))


def test_attention_that_bypasses_torchs_is_refused():
    student = make("sd3")
    inputs, condition = batch("sd3")

    class Bypass:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            return hidden_states, encoder_hidden_states

    student.transformer.transformer_blocks[0].attn.processor = Bypass()
    with pytest.raises(RuntimeError, match="set the native attention backend"):
        student(inputs, condition)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "qwen-image-masked"])
def test_compiled_passes_are_whole_graphs_with_the_same_results(name):
    """benchmarks/compile_families.py does all of them."""
    student = make(name, steps=3).eval()
    inputs, condition = batch(name, steps=3)
    torch._dynamo.reset()
    with torch.no_grad():
        folded, drawn = student(inputs, condition), sample(student, inputs[:, 0], condition)
        student.transformer.compile(backend="eager", fullgraph=True)
        assert torch.equal(student(inputs, condition), folded)
        assert torch.equal(sample(student, inputs[:, 0], condition), drawn)


@pytest.mark.parametrize("name", [name for name in TINY if "guidance" not in TINY[name].condition(1)])
def test_a_students_guidance_scale_is_that_of_its_row(name):
    transformer, (inputs, condition) = TINY[name].transformer(), batch(name)
    config = replace(make(name).config, guidance_range=(1.0, 3.0))
    student = Student(transformer, config)
    for module, weight in student.named_parameters():
        if module.endswith("guidance_proj.weight"):
            torch.nn.init.normal_(weight, std=0.1)
    scales = [torch.tensor(x) for x in ([1.0, 2.0], [1.0, 3.0])]
    with torch.no_grad():
        one, other = (student(inputs, condition | {"guidance": x}) for x in scales)
        cached = student(inputs, condition | {"guidance": scales[0]}, sequential=True)
    assert near(cached, one) and torch.equal(one[0], other[0]) and not near(one[1], other[1], 1e-3)
