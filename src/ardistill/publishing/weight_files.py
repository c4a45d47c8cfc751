"""What the files of a student's weights say of themselves, and how a card names the teacher that they belong to."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ardistill.publishing.stock import call_of
from ardistill.student import Student
from ardistill.student.model import FewStepModel
from ardistill.teacher import StockDrawing, Teacher, split_name
from ardistill.trajectories.parquet import PLACE

ARCHITECTURES = {
    "FluxTransformer2DModel": "flux-1",
    "SD3Transformer2DModel": "stable-diffusion-3",
    "Lumina2Transformer2DModel": "lumina-2",
}
"""Transformer class -> its name in the model specification; the class's own name where that has none."""


def base_model(student: Student, teacher: Teacher) -> str:
    """The arguments of ``from_pretrained`` that load a student's teacher, as source.

    Of a folder the last part of its path alone is named, as others do not have the path. What the student replaces is
    left out, or has something in its place.
    """
    name, revision, variant = split_name(student.config.teacher)
    name = Path(name).name if Path(name).is_absolute() else name or "the/teacher"
    words = [f'"{name}"']
    words += [f'{key}="{value}"' for key, value in (("revision", revision), ("variant", variant)) if value]
    given = getattr(teacher.companions, "index", teacher.companions)  # the index alone: no component is loaded for this
    absent = [part for part in left_out(student) if part in teacher.companions and given[part] is not None]
    words += [f"{part}=None" for part in absent]
    for part, (kind, options) in teacher.family.replaced.items():
        words.append(f"{part}={kind}({', '.join(f'{key}={value}' for key, value in options.items())})")
    return ", ".join(words)


def left_out(student: Student) -> tuple[str, ...]:
    """Components and settings of its teacher's pipeline that a student does without; one of two transformers none."""
    return () if len(student.parts) > 1 else student.family.left_out


def python_lines(
    student: Student, teacher: Teacher, drawing: StockDrawing, load: str, classes: Sequence[str] = (), more: str = ""
) -> str:
    """A block of Python that loads the base model with a student's weights and draws.

    Args:
        student: The student.
        teacher: Its teacher.
        drawing: How the teacher's pipeline class draws it.
        load: Lines that make ``pipeline``.
        classes: Classes of diffusers that these lines use besides the pipeline's.
        more: Further imports.
    """
    scheduler = type(drawing.scheduler).__name__
    replaced = (name for name, _ in teacher.family.replaced.values())
    names = ", ".join(sorted({teacher.pipeline_class, scheduler, *classes, *replaced}))
    imports = "\n".join(filter(None, (f"from diffusers import {names}", more)))
    return f"""```python
{imports}

{load}
pipeline.scheduler = {scheduler}.from_pretrained("{PLACE}", subfolder="scheduler")
{student.family.preparation}images = {call_of(student, drawing)}
```"""


def noise_levels(student: FewStepModel) -> str:
    """The noise level of each state as other programs count it: sigma of flow matching, else sigma / alpha.

    No level is written with an exponent, because ComfyUI's *ManualSigmas* reads ``1e-05`` as 1 and 5.
    """
    knots = student.config.knots
    pairs = zip(knots.sigma, knots.alpha, strict=True)
    levels = [sigma if "flow" in knots.prediction_type else sigma / alpha for sigma, alpha in pairs]
    return ", ".join(np.format_float_positional(x, 6, fractional=False, trim="-") for x in levels)


def loading_by_comfyui(student: Student, file: str, folder: str, node: str) -> str:
    """Markdown that says how to draw in ComfyUI.

    Args:
        student: The student.
        file: Name of the file of weights.
        folder: ComfyUI's folder for it.
        node: ComfyUI's node that loads it, and how it is set.
    """
    guidance = ""
    if student.family.embeds_guidance(student.transformer):
        guidance = f", *FluxGuidance* at {student.config.guidance_scale:g}"
    return textwrap.fill(
        f"In ComfyUI, put `{file}` into `{folder}` and load it with {node}. Draw with the sampler `euler` in "
        f"{student.num_steps} steps at CFG 1{guidance}, between these noise levels: {noise_levels(student)}.",
        width=116,
    )


def comfyui_of_two(student: Student, files: Sequence[str]) -> str:
    """Markdown that says how to draw with the LoRAs of two transformers in ComfyUI.

    Args:
        student: The student of both.
        files: The LoRA of the transformer for high noise, and that of the one for low noise.
    """
    steps = [part.num_steps for part in student.parts.values()]
    return textwrap.fill(
        f"In ComfyUI, put both files into `models/loras` and load each with *LoraLoaderModelOnly* at strength 1: "
        f"`{files[0]}` onto the model for high noise, `{files[1]}` onto the one for low noise. Draw with the sampler "
        f"`euler` at CFG 1, the first {steps[0]} steps with the former model and the other {steps[1]} with the latter, "
        f"between these noise levels: {noise_levels(student)}.",
        width=116,
    )


def described(student: FewStepModel, name: str, kind: str = "") -> dict[str, str]:
    """Entries of a safetensors header, in the names of the model specification (modelspec).

    Args:
        student: The student.
        name: Title of the file.
        kind: ``lora`` for adapters; empty for whole weights.
    """
    architecture = ARCHITECTURES.get(student.class_name, student.class_name)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.usage_hint": f"{student.num_steps} steps of Euler between the noise levels {noise_levels(student)}; "
        "CFG 1",
    }
