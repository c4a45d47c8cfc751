"""The model card of an exported student."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCardData

from ardistill.student import Student
from ardistill.teacher import split_name


def result_name(student: Student) -> str:
    """Attribute of a pipeline's result that holds what was drawn."""
    return "frames" if len(student.family.latent_shape(student.transformer)) == 4 else "images"


def loading_with_own_module(student: Student, module: Path, reason: str) -> str:
    """Markdown that says how to load an export that carries its own pipeline module.

    Args:
        student: The student.
        module: The module's file.
        reason: A clause that says why diffusers' own pipeline cannot draw it.
    """
    takes_text = student.family.encode is not None
    example = 'prompt="a red cat"' if takes_text else "[0, 1, 2]"
    needs = "torch, diffusers and transformers" if takes_text else "torch and diffusers"
    source, more = module.read_bytes(), ""
    if student.has_own_weights:
        more = " diffusers warns\nof weights that it does not know; the pipeline loads them itself."
    return f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this/folder", trust_remote_code=True)
images = pipeline({example}).{result_name(student)}
```

diffusers' own pipeline cannot draw this student: {reason}.
`trust_remote_code` runs `{module.name}` of this folder, which needs {needs} alone. To review it, read its
{len(source.splitlines())} lines, or make them anew with ardistill {version("ardistill")}: they are what
`ardistill.publishing.pipeline_source` writes for every student of a {student.class_name}. SHA-256:
`{hashlib.sha256(source).hexdigest()}`.

With ardistill installed, `ardistill.load("this/folder")` runs the package's own code instead.{more}"""


def model_card(student: Student, loading: str, figures: str = "", has_picture: bool = True) -> str:
    """Markdown that describes the student, how to load it and what was measured.

    Args:
        student: The student, which is described by its configuration.
        loading: Markdown that says how to load the folder and draw with it.
        figures: Markdown of measured metrics; if empty, the card says that nothing was measured.
        has_picture: Whether ``samples.png`` is in the card's folder.
    """
    config = student.config
    name = split_name(config.teacher)[0]  # of a folder the last part alone, as others do not have the path
    teacher = Path(name).name if Path(name).is_absolute() else name or "an unnamed teacher"
    kind = f"history in {config.history_layers} layers, mask {config.mask}" if config.history_layers else "no history"
    guidance = f"The teacher's guidance of {config.guidance_scale:g} is absorbed: each step is one evaluation."
    if config.takes_guidance:
        low, high = config.guidance_range
        guidance = (
            f"Guidance of {low:g} to {high:g} is an input, `guidance_scale` of the pipeline ({config.guidance_scale:g} "
            "if not given): each step is one evaluation all the same."
        )
    takes_text = student.family.encode is not None
    on_hub = teacher.count("/") == 1 and not teacher.startswith(("zoo/", ".")) and not Path(teacher).exists()
    facts = ModelCardData(
        library_name="diffusers",
        base_model=teacher if on_hub else None,
        tags=["ardistill", "autoregressive-distillation", "few-step"],
        pipeline_tag="text-to-image" if takes_text else "unconditional-image-generation",
    )
    return f"""---
{facts.to_yaml()}
---

# A {student.num_steps}-step student of {teacher}

AutoRegressive Distillation (arXiv:2504.11295): {student.num_steps} steps, {kind}; target `{config.target}`, output
`{config.output}`. {guidance}

{loading}

{"![Samples](samples.png)" if has_picture else ""}

{figures or "Its quality was not measured; `ardistill evaluate` does."}
"""
