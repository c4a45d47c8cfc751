"""Compiled blocks: the same results, no graph break, and as many graphs whatever the number of layers with history."""

import copy
import dataclasses
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from tiny import ONE_EACH, TINY
from tiny_students import batch, make

from ardistill.core import history
from ardistill.core.binding import rebind
from ardistill.student import sample

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def strict():
    """Dynamo's limit of graphs is an error, not a warning."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, capture_dynamic_output_shape_ops=False):
        yield
    torch._dynamo.reset()


def passes(student, name):
    """Estimates of a folded training pass with the gradient of its first weight, and a sample."""
    inputs, condition = batch(name, steps=student.num_steps)
    student.zero_grad()
    folded = student(inputs, condition)
    folded.square().mean().backward()
    gradient = next(p.grad for p in student.transformer.parameters() if p.grad is not None)
    return folded.detach(), gradient, sample(student, inputs[:, 0], condition)


@pytest.mark.parametrize("name", ONE_EACH)
def test_compiled_blocks_give_the_same_in_one_graph_each(name):
    """A training pass. The experts of HiDream choose tokens on the host and break graphs; its wide model has none."""
    student = make(name, 2, steps=2)
    inputs, condition = batch(name, steps=2)
    expected = student(inputs, condition)
    expected.square().mean().backward()
    gradients = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    student.compile(backend="eager", fullgraph=True)
    found = student(inputs, condition)
    found.square().mean().backward()
    assert torch.equal(found, expected)
    assert all(map(torch.equal, gradients, [p.grad for p in student.parameters() if p.grad is not None]))


@pytest.mark.parametrize("name", ["dit-timm", "sana"])
def test_compiled_blocks_draw_the_same(name):
    student = make(name, 3, steps=3)  # no, one and two earlier steps: each kind of attention
    expected = passes(student, name)
    student.compile(backend="eager", fullgraph=True)
    assert all(torch.equal(x, y) for x, y in zip(passes(student, name), expected, strict=True))


def graphs(layers, monkeypatch):
    """How many graphs a training pass and a sample compile, each alone: after the other, shapes are slow symbols."""
    tiny, found = TINY["flux"], []  # with blocks of two kinds: of three layers with history, two are of the second kind
    depth = {"num_layers": 1, "num_single_layers": 7}
    monkeypatch.setitem(TINY, "flux", dataclasses.replace(tiny, options=tiny.options | depth))
    student = make("flux", layers)
    student.compile(backend="eager", fullgraph=True)
    inputs, condition = batch("flux")
    for run in (lambda: student(inputs, condition).square().mean().backward(),
                lambda: sample(student, inputs[:, 0], condition)):  # fmt: skip
        torch._dynamo.utils.counters.clear()
        run()
        torch._dynamo.reset()
        found.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return found


def test_the_number_of_graphs_does_not_depend_on_the_layers_with_history(monkeypatch):
    few, many = (graphs(layers, monkeypatch) for layers in (3, 6))
    assert few == many == [4, 10]


@pytest.mark.parametrize("name", ["dit", "dit-timm", "sd3.5", "flux"])
def test_a_student_with_bound_attention_copies_and_pickles(name):
    student = make(name, 2)
    expected = passes(student, name)
    student.zero_grad()
    for again in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert all(torch.equal(x, y) for x, y in zip(passes(again, name), expected, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(passes(student, name), expected, strict=True))


def spelled_out(query):
    return torch.nn.functional.scaled_dot_product_attention(query, query, query) + torch.ones(())


def by_module(query):
    return F.scaled_dot_product_attention(query, query, query) + torch.ones(())


@pytest.mark.parametrize("function", [spelled_out, by_module])
def test_attention_is_bound_however_torch_is_named(function):
    bound, query = rebind(function, lambda query, key, value: 2 * query), torch.ones(1, 1, 2, 4)
    assert torch.equal(bound(query), torch.full_like(query, 3))
    assert torch.equal(torch.compile(bound, backend="eager", fullgraph=True)(query), bound(query))
    assert torch.equal(function(query), torch.full_like(query, 2))


def test_options_of_the_compiler_may_be_a_dict():
    student = make("dit", 2)
    student.compile(backend=lambda graph, inputs, options=None: graph.forward, options={"name": 1})
    inputs, condition = batch("dit")
    expected = sample(make("dit"), inputs[:, 0], condition)
    assert torch.equal(sample(copy.deepcopy(student), inputs[:, 0], condition), expected)


def test_an_error_in_a_block_leaves_nothing_behind():
    student = make("dit", 2)
    inputs, condition = batch("dit")
    expected = sample(student, inputs[:, 0], condition)
    attention = student.transformer.transformer_blocks[1].attn1
    kept = []

    def fail(module, arguments):
        kept.append(weakref.ref(history._NOW.block.layout))
        raise torch.OutOfMemoryError("too much")

    hook = attention.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        sample(student, inputs[:, 0], condition)
    gc.collect()
    assert kept[0]() is None
    hook.remove()
    assert torch.equal(sample(student, inputs[:, 0], condition), expected)
