"""Write a student as a diffusers pipeline folder that loads without this package."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import diffusers

from ardistill.core.history import MASKS
from ardistill.evaluation import draw_samples
from ardistill.files import check_folder, whole_folder
from ardistill.publishing.adapters import write_lora
from ardistill.publishing.card import loading_with_own_module, model_card
from ardistill.publishing.module import pipeline_source
from ardistill.publishing.single_file import write_single_file
from ardistill.student import Student
from ardistill.student.files import save_transformer
from ardistill.teacher import Companions, Teacher, check_same_teacher

Form = Literal["pipeline", "lora", "single_file"]
FORMS: tuple[str, ...] = get_args(Form)
"""What ``export`` writes."""


def export(
    student: Student,
    teacher: Teacher,
    folder: str | Path,
    *,
    form: Form = "pipeline",
    figures: str = "",
    picture: str | Path | None = None,
) -> None:
    """Write a diffusers pipeline folder: transformer, scheduler, the pipeline's own module, a card and a picture.

    It loads with ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``. The teacher's companions (its
    VAE, the names of its classes) come along; where there is no VAE, the pipeline draws pixels.

    The other forms are for students that a stock pipeline can draw, and hold a card and a picture beside weights that
    are loaded on the base model: ``lora`` the adapters of a student with adapters, in the conventions of diffusers (or
    PEFT) and ComfyUI; ``single_file`` all weights in the key layout of the original checkpoint.

    Args:
        student: The student, in evaluation mode.
        teacher: Its teacher, whose scheduler and companions are copied; the student's knots do not depend on the
            scheduler.
        folder: New or empty folder.
        form: What is written.
        figures: Markdown of the measured metrics, for the card.
        picture: PNG for the card; drawn here from 20 noises of seed 0 if not given and the teacher needs no prompts.

    Raises:
        ValueError: The folder is not empty, the student is of another teacher or of a class that diffusers lacks, or
            the form does not fit the student.
    """
    check_folder(folder)
    folder = Path(folder)
    class_name = student.class_name
    if not hasattr(diffusers, class_name):
        raise ValueError(
            f"diffusers has no class {class_name}, so that its folder would not load with diffusers alone; "
            "Student.from_pretrained loads what distill wrote"
        )
    if folder.exists() and any(folder.iterdir()):  # before anything is computed
        raise ValueError(f"expected {folder} to be empty; choose a new folder")
    remedy = "name the teacher that the student was distilled from"
    check_same_teacher("the student", student.config, teacher, remedy)
    if form not in FORMS:
        raise ValueError(f"expected a form of {', '.join(FORMS)}, got {form!r}")
    usage = _usage(student, teacher, form) if form != "pipeline" else ""
    with whole_folder(folder) as made:
        if form == "pipeline":
            _write(student, teacher, made, figures, picture)
        else:
            write = write_lora if form == "lora" else write_single_file
            loading = write(student, teacher, made, folder.resolve().name, usage)
            _write_card(student, teacher, made, loading, figures, picture)


def _usage(student: Student, teacher: Teacher, form: Form) -> str:
    """Source of Python that draws with the teacher's pipeline, once it has the student's weights.

    Raises:
        ValueError: It cannot draw the student.
    """
    config, sees_earlier = student.config, MASKS[student.config.mask]
    reason = ""
    if config.history_layers and any(len(sees_earlier(step)) > 1 for step in range(student.num_steps)):
        reason = f"{config.history_layers} of its layers attend to earlier steps"
    elif config.output != "solver" or config.target != "state":
        reason = f"its steps (output {config.output}, target {config.target}) are not a solver's"
    elif student.has_own_weights:
        reason = "it has weights that diffusers' transformer lacks"
    if reason:
        raise ValueError(
            f"form {form} holds weights for a stock pipeline, which cannot draw this student: {reason}; export it with "
            "form pipeline, or distil with history_layers 0 and the default output and target"
        )
    first = 'prompt="a red cat"' if teacher.takes_text else "class_labels=[0, 1, 2]"
    name, off = teacher.family.guidance_off
    if teacher.pipeline_class in teacher.family.scale_is_input_of:
        name, off = "guidance_scale", config.guidance_scale
    return f"images = pipeline({first}, num_inference_steps={student.num_steps}, {name}={off!r})[0]"


def _write(student: Student, teacher: Teacher, folder: Path, figures: str, picture: str | Path | None) -> None:
    """Write the files of an export."""
    save_transformer(student, folder / "transformer")
    teacher.scheduler.save_pretrained(folder / "scheduler")
    source = pipeline_source(teacher.pipeline_class, student.class_name)
    # diffusers caches modules by file name: the name follows from the contents, so that two students never share one.
    name = f"pipeline_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    (folder / f"{name}.py").write_text(source)
    _write_card(student, teacher, folder, loading_with_own_module(student), figures, picture)
    index: dict[str, Any] = {
        "_class_name": [name, "ARDPipeline"],
        "_base_class_name": teacher.pipeline_class,
        "_diffusers_version": diffusers.__version__,
        "transformer": ["diffusers", student.class_name],
        "scheduler": ["diffusers", type(teacher.scheduler).__name__],
        **{name: [None, None] for name in teacher.missing_components},
        "student": asdict(replace(student.config, lora_rank=0)),
    }
    companions = teacher.companions
    for part in companions:
        if isinstance(companions, Companions):
            index[part] = companions.index[part]
            if companions.is_component(part):
                companions.copy(part, folder / part)
        else:
            companions[part].save_pretrained(folder / part)
            index[part] = [type(companions[part]).__module__.split(".")[0], type(companions[part]).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def _write_card(
    student: Student, teacher: Teacher, folder: Path, loading: str, figures: str, picture: str | Path | None
) -> None:
    """Write the card and its picture, which is drawn here if it is not given and the teacher needs no prompts."""
    if picture is not None:
        shutil.copyfile(picture, folder / "samples.png")
    elif teacher.draws_images and not teacher.takes_text:
        draw_samples(student, teacher, folder / "samples.png")
    card = model_card(student, loading, figures, (folder / "samples.png").exists())
    (folder / "README.md").write_text(card)
