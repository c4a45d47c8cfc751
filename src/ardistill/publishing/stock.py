"""Students that a stock diffusers pipeline draws, without code of ours in their folder."""

from __future__ import annotations

from typing import Any

import diffusers

from ardistill.core.history import MASKS
from ardistill.publishing.card import result_name
from ardistill.student import Student
from ardistill.teacher import Companions, StockDrawing, Teacher, call_parameters, pixel_size, stock_drawing
from ardistill.trajectories.parquet import PLACE


def stock_form(student: Student, teacher: Teacher) -> StockDrawing:
    """How the teacher's stock pipeline draws a student: its scheduler, and all arguments but labels or prompt.

    Args:
        student: The student.
        teacher: Its teacher.

    Raises:
        ValueError: It cannot; the message is a clause that says why.
    """
    config = student.config
    if not hasattr(diffusers, student.class_name):
        raise ValueError(f"diffusers has no class {student.class_name}")
    for part in (x.config for x in student.parts.values()):
        visible = MASKS[part.mask]
        if part.history_layers and any(len(visible(step)) > 1 for step in range(part.knots.num_steps)):
            raise ValueError(f"{part.history_layers} of its layers attend to earlier steps")
        if part.output != "solver" or part.target != "state":
            raise ValueError(f"its steps (output {part.output}, target {part.target}) are not a solver's")
    if student.has_own_weights:
        raise ValueError("it has weights that diffusers' transformer lacks")
    if "vae" not in teacher.companions:
        raise ValueError("it draws pixels, and diffusers' pipeline decodes latents with a VAE")
    found = stock_drawing(teacher, config.knots)
    return StockDrawing(found.scheduler, found.arguments | _more_arguments(student, teacher))


def _more_arguments(student: Student, teacher: Teacher) -> dict[str, Any]:
    """Arguments of the call that turn guidance off, or tell it to the network, the size and the length of prompts."""
    family, companions, shapes = teacher.family, teacher.companions, student.config.sample_shapes
    name, off = family.guidance_off
    found: dict[str, Any] = {name: off} if name else {}
    if teacher.pipeline_class in family.scale_is_input_of:
        found = {"guidance_scale": student.config.guidance_scale}
    if shapes and "height" in call_parameters(teacher.pipeline_class):
        found |= pixel_size(shapes[0], teacher.vae, teacher.pixels_per_latent)
    length = companions.index.get("max_sequence_length") if isinstance(companions, Companions) else None
    return found | ({} if length is None else {"max_sequence_length": length})


def call_of(student: Student, drawing: StockDrawing) -> str:
    """Source of a call that draws with a stock pipeline."""
    first = 'prompt="a red cat"' if student.family.encode is not None else "class_labels=[0, 1, 2]"
    arguments = ", ".join([first, *(f"{key}={value!r}" for key, value in drawing.arguments.items())])
    return f"pipeline({arguments}).{result_name(student)}"


def loading_with_stock_pipeline(student: Student, teacher: Teacher, drawing: StockDrawing) -> str:
    """Markdown that says how to draw with an export that diffusers loads by itself."""
    return f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{PLACE}")
{student.family.preparation}images = {call_of(student, drawing)}
```

The pipeline is diffusers' own {teacher.pipeline_class}; this folder holds no code. The arguments are part of the
model: it was distilled to draw in these steps, and without further guidance. With ardistill installed,
`ardistill.load("{PLACE}")` needs none of them."""
