"""Write a student as a diffusers pipeline folder that loads without this package."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from ardistill.evaluation import draw_samples
from ardistill.files import check_folder, load_tensors, whole_folder
from ardistill.publishing.card import loading_with_own_module, model_card
from ardistill.publishing.module import pipeline_source
from ardistill.publishing.origin import Origin, find_origin
from ardistill.student import Student
from ardistill.student.files import WEIGHTS, save_transformer
from ardistill.teacher import Companions, Teacher, check_same_teacher


def export(
    student: Student,
    teacher: Teacher,
    folder: str | Path,
    *,
    figures: str = "",
    picture: str | Path | None = None,
    run: str | Path | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> None:
    """Write a diffusers pipeline folder: transformer, scheduler, the pipeline's own module, a card and a picture.

    It loads with ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``. The teacher's companions (its
    VAE, the names of its classes) come along; where there is no VAE, the pipeline draws pixels.

    Args:
        student: The student, in evaluation mode.
        teacher: Its teacher, whose scheduler and companions are copied; the student's knots do not depend on the
            scheduler.
        folder: New or empty folder.
        figures: Markdown of the measured metrics, for the card; those of the run's evaluation if not given.
        picture: PNG for the card; if not given, that of the run's evaluation or the last grid of its training; without
            these drawn here from 20 noises of seed 0, if the teacher needs no prompts.
        run: The run or checkpoint that the student was read from; the card says how it was made.
        license: The student's licence, as the Hub writes it; if not given, that of the teacher's card.
        datasets: Hub ids of the data sets that the student was trained on, for the card.

    Raises:
        ValueError: The folder is not empty, the student is of another teacher or of a class that diffusers lacks, or
            what the card would say is damaged or no licence.
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
    origin = find_origin(run, teacher, license, datasets)
    origin = replace(origin, figures=figures or origin.figures, picture=picture or origin.picture)
    with whole_folder(folder) as made:
        _write(student, teacher, made, origin)


def is_export_of(folder: str | Path, student: Student) -> bool:
    """Whether a folder holds an export of this very student: its configuration and its weights, as they were stored."""
    weights = Path(folder) / "transformer" / WEIGHTS
    if not weights.is_file():
        return False
    try:
        there = Student.from_pretrained(folder, "cpu").config
        stored = load_tensors(weights)
    except ValueError:
        return False
    own = student.transformer.state_dict()
    return (
        replace(student.config, lora_rank=0) == there
        and own.keys() == stored.keys()
        and all(torch.equal(own[name].cpu().to(x.dtype), x) for name, x in stored.items())
    )


def _write(student: Student, teacher: Teacher, folder: Path, origin: Origin) -> None:
    """Write the files of an export."""
    save_transformer(student, folder / "transformer")
    teacher.scheduler.save_pretrained(folder / "scheduler")
    source = pipeline_source(teacher.pipeline_class, student.class_name)
    # diffusers caches modules by file name: the name follows from the contents, so that two students never share one.
    name = f"pipeline_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    (folder / f"{name}.py").write_text(source)
    if origin.picture is not None:
        shutil.copyfile(origin.picture, folder / "samples.png")
    elif teacher.draws_images and not teacher.takes_text:
        draw_samples(student, teacher, folder / "samples.png")
    has_picture = (folder / "samples.png").exists()
    card = model_card(student, loading_with_own_module(student), origin.figures, has_picture, origin)
    (folder / "README.md").write_text(card)
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
