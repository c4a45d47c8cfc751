"""Students of the tiny transformers of every family, and inputs that fit them."""

import torch
from tiny import TINY, open_gates

from ardistill.student import Student, StudentConfig
from ardistill.teacher import knots_from_scheduler

STEPS = 4


def make(name, history_layers=2, mask="M4", output="solver", steps=STEPS, gated=True):
    knots = knots_from_scheduler(TINY[name].scheduler(), steps)
    config = StudentConfig(knots, history_layers, mask, output=output, gated=gated)
    student = Student(TINY[name].transformer(), config)
    open_gates(student)
    if output == "direct":
        for head in student.family.head:
            torch.nn.init.normal_(student.transformer.get_submodule(head).later_weight, std=0.1)
    return student


def batch(name, count=2, steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, steps, *TINY[name].latents, generator=generator), TINY[name].condition(count)


def near(found, expected, tolerance=1e-5):
    return (found - expected).abs().max() <= tolerance * expected.abs().max()
