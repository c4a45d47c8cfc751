"""Gradient checkpointing of every family: equal gradients, from blocks that really run again."""

import pytest
import torch
from tiny import TINY
from tiny_students import STEPS, batch, make

WAYS = {"sequential": {"sequential": True}, "own": {"on_policy": True, "through_steps": 2}}


def gradients(name, stride, **options):
    """Gradients by weight, and how often each main block ran."""
    student = make(name, 2).train()
    if stride:
        student.enable_gradient_checkpointing(stride)
    blocks = [block for block, _ in student.family.blocks(student.transformer)]
    runs = [0] * len(blocks)

    def count(number):
        runs[number] += 1

    for i, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, i=i: count(i))
    inputs, condition = batch(name)
    student(inputs, condition, **options).square().mean().backward()
    return {k: p.grad for k, p in student.named_parameters() if p.grad is not None}, runs


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


@pytest.mark.parametrize("name", TINY)
def test_checkpointing_gives_equal_gradients(name):
    plain, once = gradients(name, 0)
    recomputed, runs = gradients(name, 1)
    assert {*once} == {1} and {*runs} == {2}
    assert same(recomputed, plain)


def test_every_second_block_is_recomputed():
    plain, _ = gradients("hunyuandit", 0)
    recomputed, runs = gradients("hunyuandit", 2)
    assert runs == [2, 1, 2, 1] and same(recomputed, plain)


@pytest.mark.parametrize("way", ["sequential", "own"])
@pytest.mark.parametrize("name", ["dit", "sd3.5"])
def test_blocks_of_steps_that_run_one_after_the_other_are_recomputed_under_their_cache(name, way):
    plain, _ = gradients(name, 0, **WAYS[way])
    recomputed, runs = gradients(name, 1, **WAYS[way])
    assert {*runs} == {STEPS * (3 if way == "sequential" else 2)} and same(recomputed, plain)
