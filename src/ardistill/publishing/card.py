"""The model card of an exported student."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from ardistill.errors import version
from ardistill.publishing.metadata import card_metadata
from ardistill.publishing.origin import Origin
from ardistill.publishing.sections import how_it_was_made, license_section, limits
from ardistill.student import Student
from ardistill.student.model import FewStepModel
from ardistill.teacher import public_name
from ardistill.trajectories.parquet import PLACE


def result_name(student: Student) -> str:
    """Attribute of a pipeline's result that holds what was drawn."""
    return student.family.result or ("frames" if student.family.video else "images")


def loading_with_own_module(student: Student, module: Path, reason: str, library: str = "diffusers") -> str:
    """Markdown that says how to load an export that carries its own pipeline module.

    Args:
        student: The student.
        module: The module's file.
        reason: A clause that says why diffusers' own pipeline cannot draw it.
        library: Where the transformer's class is: diffusers, or a module beside its weights.
    """
    takes_text = student.family.encode is not None
    example = 'prompt="a red cat"' if takes_text else "[0, 1, 2]"
    needs = "torch, diffusers and transformers" if takes_text else "torch and diffusers"
    source, own, more = module.read_bytes(), "", ""
    kind = f"two {student.class_name}" if len(student.parts) > 1 else f"a {student.class_name}"
    if student.has_own_weights:
        more = " diffusers warns\nof weights that it does not know; the pipeline loads them itself."
    if library != "diffusers":
        own = f"\nIt also runs `transformer/{library}.py`, the file of the transformer's class."
    return f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{PLACE}", trust_remote_code=True)
{student.family.preparation}images = pipeline({example}).{result_name(student)}
```

diffusers' own pipeline cannot draw this student: {reason}.
`trust_remote_code` runs `{module.name}` of this folder, which needs {needs} alone. To review it, read its
{len(source.splitlines())} lines, or make them anew with ardistill {version()}: they are what
`ardistill.publishing.pipeline_source` writes for every student of {kind}. SHA-256:
`{hashlib.sha256(source).hexdigest()}`.{own}

With ardistill installed, `ardistill.load("{PLACE}")` runs the package's own code instead.{more}"""


def _kind(component: str, student: FewStepModel) -> str:
    """What a card says of the history of a student, and of its steps where it draws a part of the path."""
    config = student.config
    kind = f"history in {config.history_layers} layers, mask {config.mask}" if config.history_layers else "no history"
    return f"{student.num_steps} by `{component}` ({kind})" if config.expert else kind


def model_card(
    student: Student,
    loading: str,
    origin: Origin = Origin(),  # noqa: B008
    has_picture: bool = True,
    relation: Literal["adapter", "finetune"] = "finetune",
) -> str:
    """Markdown that describes the student, how to load it, what was measured, how it was made and what it cannot do.

    Args:
        student: The student, which is described by its configuration.
        loading: Markdown that says how to load the folder and draw with it.
        origin: Where the student comes from, and what was measured of it, as far as it is known.
        has_picture: Whether ``samples.png`` is in the card's folder.
        relation: What the folder's weights are to the teacher's.
    """
    config = student.config
    kind = " and ".join(_kind(name, part) for name, part in student.parts.items())
    guidance = f"The teacher's guidance of {config.guidance_scale:g} is absorbed: each step is one evaluation."
    if config.takes_guidance:
        low, high = config.guidance_range
        guidance = (
            f"Guidance of {low:g} to {high:g} is an input, `guidance_scale` of the pipeline ({config.guidance_scale:g} "
            "if not given): each step is one evaluation all the same."
        )
    parts = [
        f"---\n{card_metadata(student, origin, relation).to_yaml()}\n---",
        f"# A {student.num_steps}-step student of {public_name(config.teacher)}",
        f"AutoRegressive Distillation (arXiv:2504.11295): {student.num_steps} steps, {kind}; target `{config.target}`, "
        f"output\n`{config.output}`. {guidance}",
        loading,
        "![Samples](samples.png)" if has_picture else "",
        origin.figures or "Its quality was not measured; `ardistill evaluate` does.",
        how_it_was_made(student, origin),
        limits(student, origin),
        license_section(origin),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def example_of(folder: str | Path) -> str:
    """The Python of a folder's card, which loads the folder and draws."""
    card = (Path(folder) / "README.md").read_text()
    return card.split("```python\n")[1].split("```")[0].strip().replace(PLACE, str(folder))
