"""Weights, noise and autocast of any dtype draw alike: states are float32 whatever computes."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import ONE_EACH, TINY, open_gates

from ardistill.core.knots import Knots
from ardistill.student import Student, StudentConfig, sample
from ardistill.teacher import Teacher

pytestmark = pytest.mark.slow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@pytest.fixture(scope="module")
def exact():
    """Family to the samples and the solver's states of its weights and noise in float32."""
    return {}


EVERY_DTYPE = ("dit", "pixart-sigma", "sd3.5", "flux", "wan", "z-image-ragged")
"""Families of different kinds; Kandinsky's class keeps some weights in float32, and is in no such case."""


@pytest.mark.parametrize(
    "weights,name",
    [(x, name) for name in ONE_EACH for x in DTYPES if name in EVERY_DTYPE or x in ("float32", "bfloat16")
     if name != "kandinsky5"],
)  # fmt: skip
def test_case_02_weights_noise_and_autocast_of_any_dtype_draw(name, weights, exact):
    """Samples and solver states are float32 and near those of float32 weights, whatever the dtypes that meet."""
    tiny = TINY[name]
    knots = Knots("flow", (1000.0, 500.0), (0.0, 0.5, 1.0), (1.0, 0.5, 0.0))
    transformer = tiny.transformer().to(DTYPES[weights])
    teacher = Teacher(transformer, DDIMScheduler(), latent_shape=tiny.latents)
    student = Student.from_teacher(teacher, StudentConfig(knots, 2)).eval()
    open_gates(student)
    noise = torch.randn(2, *tiny.latents, generator=torch.Generator().manual_seed(0))
    condition = tiny.condition(2)
    if "guidance" in condition:
        condition["guidance"].fill_(4.0)  # Flux embeds 1000 times it in 16 bits, where 3500 is 3504
    if name not in exact:
        plain = Student.from_teacher(Teacher(tiny.transformer(), DDIMScheduler()), student.config).eval()
        open_gates(plain)
        exact[name] = sample(plain, noise, condition)
    for noise_dtype in DTYPES.values():
        given = {key: x.to(noise_dtype) if x.is_floating_point() and x.ndim > 2 else x for key, x in condition.items()}
        for autocast in (None, torch.bfloat16, torch.float16):
            if name == "sana" and autocast == torch.float16:
                continue  # its linear attention leaves the range of float16, in diffusers' own model, too
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                if autocast is not None and weights.endswith("16") and autocast != DTYPES[weights]:
                    with pytest.raises(ValueError, match="leave autocast out"):
                        sample(student, noise, condition)
                    continue
                drawn = sample(student, noise.to(noise_dtype), given)
                solved = teacher.solve_ode(noise.to(noise_dtype), given, knots)
            assert drawn.dtype == solved.states.dtype == torch.float32
            assert drawn.isfinite().all() and solved.states.isfinite().all()
            error = (drawn - exact[name]).square().mean().sqrt() / exact[name].square().mean().sqrt()
            exactly = weights == "float32" and noise_dtype == torch.float32 and autocast is None
            assert float(error) < (1e-6 if exactly else 0.1), (noise_dtype, autocast)
