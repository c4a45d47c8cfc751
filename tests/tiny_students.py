"""Students of the tiny transformers of every family, and inputs that fit them."""

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_families import TINY, open_gates

from ardistill.student import Student, StudentConfig
from ardistill.teacher import knots_from_scheduler

STEPS = 4
VP = ("dit", "dit-timm", "pixart-alpha", "pixart-sigma", "hunyuandit")
"""Trained with a variance-preserving schedule; the others with flow matching."""


def make(name, history_layers=2, mask="M4", output="solver", steps=STEPS, gated=True):
    scheduler = DDIMScheduler() if name in VP else FlowMatchEulerDiscreteScheduler(shift=3.0)
    knots = knots_from_scheduler(scheduler, steps)
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
