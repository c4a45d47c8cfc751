"""Adapters on a base in bfloat16, every family: the untrained student is its teacher's solver, folded is cached."""

import pytest
import torch
from tiny import ONE_EACH, TINY, open_gates

from ardistill.families import transformer_class
from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import Teacher

ROUNDING = 2**-9
"""Largest relative error of rounding to bfloat16: half of its spacing, 2^-8."""


def bound(transformer, block_lists):
    """Bound of the relative error of an output: in a block at most 10 products, 6 norms and 6 sums are rounded, at both
    ends of the network 8 numbers; as if all errors added up."""
    blocks = sum(len(getattr(transformer, name)) for name in block_lists)
    return (22 * blocks + 8) * ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_identities_on_a_base_in_bfloat16(name, tmp_path):
    tiny = TINY[name]
    tiny.transformer().save_pretrained(tmp_path / "base")  # some classes keep layers in float32 where they are loaded
    transformer = transformer_class(tiny.class_name).from_pretrained(tmp_path / "base", torch_dtype=torch.bfloat16)
    teacher = Teacher(transformer, tiny.scheduler(), latent_shape=tiny.latents)
    knots, condition = teacher.knots(2), tiny.condition(2)
    noise = torch.randn(2, *tiny.latents, generator=torch.Generator().manual_seed(1))
    solved = teacher.solve_ode(noise, condition, knots).states[:, -1]
    for layers in (0, 2):
        student = Student.from_teacher(teacher, StudentConfig(knots, layers, lora_rank=2)).eval()
        assert torch.equal(sample(student, noise, condition)[:, -1], solved)  # B is zero, gates are closed
    for part, parameter in student.named_parameters():
        if ".lora_B" in part:
            torch.nn.init.normal_(parameter, std=0.1)
    open_gates(student)
    inputs = torch.randn(2, 2, *tiny.latents, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        folded = student(inputs, condition)
        cached = student(inputs, condition, sequential=True)
        limit = bound(teacher.transformer, student.family.block_lists)
        assert (cached - folded).norm() / folded.norm() <= limit  # summed in another order, then rounded
        student.save_adapters(tmp_path)
        assert torch.equal(Student.from_adapters(teacher, tmp_path)(inputs, condition), folded)
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
