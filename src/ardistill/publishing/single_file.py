"""A student's whole weights as one file in the layout of the original checkpoint, which many programs read."""

from __future__ import annotations

from pathlib import Path

from ardistill.files import save_tensors
from ardistill.publishing.layouts import FLUX, SD3, WAN, KeyLayout
from ardistill.publishing.weight_files import base_model, described, loading_by_comfyui, python_lines
from ardistill.student import Student
from ardistill.student.files import merged_weights
from ardistill.teacher import StockDrawing, Teacher
from ardistill.trajectories.parquet import PLACE

LAYOUTS: dict[str, KeyLayout] = {
    "FluxTransformer2DModel": FLUX,
    "SD3Transformer2DModel": SD3,
    "WanTransformer3DModel": WAN,
}
"""Transformer class -> the key layout of its original checkpoints, with all weights."""


def check_single_file(class_name: str) -> None:
    """Refuse a transformer class whose original layout is not known.

    Raises:
        ValueError: It is not.
    """
    if class_name not in LAYOUTS:
        raise ValueError(
            f"expected a student of {', '.join(LAYOUTS)} for form single_file, got one of {class_name}; export it with "
            "form pipeline, in diffusers' layout"
        )


def write_single_file(
    student: Student, teacher: Teacher, folder: Path, name: str, drawing: StockDrawing, dtype: str | None = None
) -> str:
    """Write the weights of a student without history, adapters merged.

    Args:
        student: A student with no weights but those of its transformer class.
        teacher: Its teacher.
        folder: Where the file is written.
        name: Title of the weights, and name of the file.
        drawing: How the teacher's pipeline class draws the student.
        dtype: What the weights are stored in; as the student has them if not given.

    Returns:
        Markdown that says how to load the file and draw.

    Raises:
        ValueError: The layout of its class is not known, or lacks one of its weights, or the student has two
            transformers.
    """
    check_single_file(student.class_name)
    if len(student.parts) > 1:
        raise ValueError(
            "form single_file is for a student of one transformer, this one has two; export it with form pipeline, or "
            "adapters with form lora"
        )
    file = f"{name}.safetensors"
    weights = LAYOUTS[student.class_name].convert(merged_weights(student, dtype))
    save_tensors(weights, folder / file, described(student, name))
    kind, base = student.class_name, base_model(student, teacher)
    source = f'"{PLACE}/{file}", config={base.partition(",")[0]}, subfolder="transformer"'
    load = f"transformer = {kind}.from_single_file({source})\n"
    load += f"pipeline = {teacher.pipeline_class}.from_pretrained({base}, transformer=transformer)"
    lines = python_lines(student, teacher, drawing, load, [kind])
    more = loading_by_comfyui(student, file, "models/diffusion_models", "*UNETLoader*")
    return (
        f"The transformer's weights in the original checkpoint's key layout, for the base model.\n\n{lines}\n\n{more}"
    )
