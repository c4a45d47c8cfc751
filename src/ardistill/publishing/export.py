"""Write a student as a diffusers pipeline folder that loads without this package."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import diffusers
import torch
from torch import Tensor

from ardistill.core.experts import PairConfig
from ardistill.evaluation import draw_samples
from ardistill.files import check_folder, load_tensors, whole_folder
from ardistill.publishing.adapters import stored_adapters, write_lora
from ardistill.publishing.card import loading_with_own_module, model_card
from ardistill.publishing.module import pipeline_source
from ardistill.publishing.origin import Origin, find_origin
from ardistill.publishing.own_class import own_file, write_own_class
from ardistill.publishing.single_file import LAYOUTS, write_single_file
from ardistill.publishing.stock import loading_with_stock_pipeline, stock_form
from ardistill.publishing.weight_files import left_out
from ardistill.student import Student, check_whole
from ardistill.student.files import adapter_weights, find_student, load_weights, merged_weights, save_transformer
from ardistill.student.model import FewStepModel
from ardistill.teacher import Companions, StockDrawing, Teacher, boundary_of, check_same_teacher

Form = Literal["pipeline", "lora", "single_file"]
"""What ``export`` writes."""
Dtype = Literal["float32", "bfloat16"]
"""What the weights of an export are stored in."""


def export(
    student: Student,
    teacher: Teacher,
    folder: str | Path,
    *,
    form: Form = "pipeline",
    dtype: Dtype | None = None,
    max_shard_size: str | None = None,
    figures: str = "",
    picture: str | Path | None = None,
    run: str | Path | None = None,
    second_run: str | Path | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> StockDrawing | None:
    """Write a diffusers pipeline folder: transformer, scheduler, the teacher's companions, a card and a picture.

    Where diffusers' own pipeline can draw the student (``stock_form``), it loads with
    ``DiffusionPipeline.from_pretrained(folder)``, and the card gives the arguments of the call. Otherwise the folder
    has a module of its own and loads with ``trust_remote_code=True``; without a VAE, that pipeline draws pixels. The
    file of a transformer class that diffusers lacks lies beside its weights.

    The other forms are for students that diffusers' own pipeline can draw. Their folder has a scheduler, a card, a
    picture, and weights to load on the base model: ``lora`` the adapters of a student with adapters, as diffusers (or
    PEFT) and ComfyUI take them; ``single_file`` all weights in the key layout of the original checkpoint.

    Args:
        student: The student, in evaluation mode.
        teacher: Its teacher, whose scheduler and companions are copied; the student's knots do not depend on the
            scheduler.
        folder: New or empty folder.
        form: What is written.
        dtype: What the transformer's weights are stored in, with any form but ``lora``; as the student has them if not
            given. Whoever loads them chooses what to compute in, as with any model: ``torch_dtype``.
        max_shard_size: Size of the files of these weights at most, such as ``5GB``, with form ``pipeline``; one file if
            not given.
        figures: Markdown of the measured metrics, for the card; those of the run's evaluation if not given.
        picture: PNG for the card; if not given, that of the run's evaluation or the last grid of its training; without
            these drawn here from 20 noises of seed 0, if the teacher needs no prompts.
        run: The run or checkpoint that the student was read from; the card says how it was made.
        second_run: That of the second student of a `StudentPair`; ``run`` is then the first one's.
        license: The student's licence, as the Hub writes it; if not given, that of the teacher's card.
        datasets: Hub ids of the data sets that the student was trained on, for the card.

    Returns:
        How diffusers' own pipeline draws the student; None where the folder has a module of its own.

    Raises:
        ValueError: The folder is not empty, the student is of another teacher or draws a part of the path alone, its
            transformer's class cannot go with the folder, the form does not fit the student, or what the card would say
            is damaged or no licence.
    """
    check_folder(folder)
    folder = Path(folder)
    own_file(student.class_name)
    check_whole(student.config)
    if folder.exists() and any(folder.iterdir()):  # before anything is computed
        raise ValueError(f"expected {folder} to be empty; choose a new folder")
    remedy = "name the teacher that the student was distilled from"
    check_same_teacher("the student", student.config, teacher, remedy)
    if isinstance(student.config, PairConfig):
        student.config.check_boundary(boundary_of(teacher.companions, teacher.scheduler) or 0.0)
    if form not in get_args(Form):
        raise ValueError(f"expected a form of {', '.join(get_args(Form))}, got {form!r}")
    _check_storage(form, dtype, max_shard_size)
    origin = find_origin(run, teacher, license, datasets)
    if second_run is not None:
        origin = replace(origin, figures="", picture=None, second=find_origin(second_run, teacher, license, datasets))
    origin = replace(origin, figures=figures or origin.figures, picture=picture or origin.picture)
    if form == "pipeline":
        with whole_folder(folder) as made:
            return _write(student, teacher, made, origin, dtype, max_shard_size)
    drawing = _stock_drawing(student, teacher, form)
    write: Callable[..., str] = write_lora if form == "lora" else partial(write_single_file, dtype=dtype)
    with whole_folder(folder) as made:
        loading = write(student, teacher, made, folder.resolve().name, drawing)
        drawing.scheduler.save_pretrained(made / "scheduler")
        _write_card(student, teacher, made, loading, origin, "adapter" if form == "lora" else "finetune")
    return drawing


def _check_storage(form: Form, dtype: str | None, max_shard_size: str | None) -> None:
    """Check how weights are to be stored.

    Raises:
        ValueError: The form does not take it, or a value cannot be read.
    """
    if dtype not in (None, *get_args(Dtype)):
        raise ValueError(f"expected a dtype of {', '.join(get_args(Dtype))}, got {dtype!r}")
    if form == "lora" and dtype not in (None, "float32"):
        raise ValueError(f"expected dtype float32 for form lora, got {dtype}: adapters are small; leave it out")
    if max_shard_size is not None and form != "pipeline":
        raise ValueError(
            f"expected max_shard_size with form pipeline, got form {form}, which is one file; leave it out"
        )
    if max_shard_size is not None and not re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", max_shard_size.upper()):
        raise ValueError(f"expected a max_shard_size such as 5GB or 500MB, got {max_shard_size!r}")


def is_export_of(folder: str | Path, student: Student, form: Form = "pipeline", dtype: Dtype | None = None) -> bool:
    """Whether a folder holds an export of this very student: its configuration and its weights, in this dtype if one is
    given.
    """
    return all(_holds(Path(folder), name, part, form, dtype) for name, part in student.parts.items())


def _holds(folder: Path, component: str, student: FewStepModel, form: Form, dtype: Dtype | None) -> bool:
    """Whether an export has a student as this component of its pipeline."""
    stored: Mapping[str, Tensor]
    try:
        if form == "pipeline":
            stored, own = load_weights(folder / component), merged_weights(student, dtype)
            if find_student(folder, component).config != replace(student.config, lora_rank=0):
                return False
        elif form == "lora":
            stored, own = stored_adapters(folder, component), adapter_weights(student)
        else:
            stored = load_tensors(folder / f"{folder.resolve().name}.safetensors")
            own = LAYOUTS[student.class_name].convert(merged_weights(student, dtype))
    except (OSError, ValueError):
        return False
    if dtype is not None and {k: x.dtype for k, x in stored.items()} != {k: x.dtype for k, x in own.items()}:
        return False
    return own.keys() == stored.keys() and all(torch.equal(own[k].cpu().to(x.dtype), x) for k, x in stored.items())


def _stock_drawing(student: Student, teacher: Teacher, form: Form) -> StockDrawing:
    """How diffusers' own pipeline draws a student.

    Raises:
        ValueError: It cannot.
    """
    try:
        return stock_form(student, teacher)
    except ValueError as reason:
        raise ValueError(
            f"form {form} holds weights for diffusers' own pipeline, which cannot draw this student: {reason}; export "
            "it with form pipeline, or distil one without history and with the default target and output"
        ) from reason


def _write(
    student: Student, teacher: Teacher, folder: Path, origin: Origin, dtype: str | None, max_shard_size: str | None
) -> StockDrawing | None:
    """Write the files of an export."""
    try:
        drawing, reason = stock_form(student, teacher), ""
    except ValueError as error:
        drawing, reason = None, str(error)
    file = own_file(student.class_name)
    index: dict[str, Any] = {"_diffusers_version": diffusers.__version__}
    for name, part in student.parts.items():
        save_transformer(part, folder / name, dtype, max_shard_size)
        library = "diffusers" if file is None else write_own_class(file, folder / name)
        index[name] = [library, student.class_name]
    index |= {name: [None, None] for name in _missing_components(teacher)}
    if drawing is None:
        module = _write_module(student, teacher, folder, index)
        loading = loading_with_own_module(student, module, reason, library)
    else:  # diffusers ignores entries of the index that begin with an underscore
        index |= {"_class_name": teacher.pipeline_class, "_student": _published(student)}
        loading = loading_with_stock_pipeline(student, teacher, drawing)
    scheduler = teacher.scheduler if drawing is None else drawing.scheduler
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    _write_card(student, teacher, folder, loading, origin)
    _write_companions(teacher, folder, index, left_out(student))
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return drawing


def _missing_components(teacher: Teacher) -> list[str]:
    """Names of required components of the teacher's pipeline class that it does not have."""
    needed = inspect.signature(getattr(diffusers, teacher.pipeline_class).__init__).parameters.values()
    names = [x.name for x in needed if x.default is x.empty]
    return [x for x in names if x not in ("self", "transformer", "scheduler") and x not in teacher.companions]


def _published(student: Student) -> dict[str, Any]:
    """The configuration of a student whose adapters are merged; of two, that of each."""
    if isinstance(student.config, PairConfig):
        return student.config.to_dict()
    return asdict(replace(student.config, lora_rank=0))


def _write_module(student: Student, teacher: Teacher, folder: Path, index: dict[str, Any]) -> Path:
    """Write the module that draws, and note it in the index; its file."""
    source = pipeline_source(teacher.pipeline_class, student.class_name, len(student.parts) > 1)
    # diffusers caches modules by file name: the name follows from the contents, so that two students never share one.
    name = f"pipeline_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    (folder / f"{name}.py").write_text(source)
    index["_class_name"] = [name, "ARDPipeline"]
    index["_base_class_name"] = teacher.pipeline_class
    index["student"] = _published(student)
    return folder / f"{name}.py"


def _write_companions(teacher: Teacher, folder: Path, index: dict[str, Any], absent: Sequence[str]) -> None:
    """Write the teacher's companions, without or with others for those that a student replaces, and note them in the
    index.
    """
    companions = teacher.companions
    for part, (kind, options) in teacher.family.replaced.items():
        getattr(diffusers, kind)(**options).save_pretrained(folder / part)
        index[part] = ["diffusers", kind]
    for part in (x for x in companions if x not in absent and x not in index):
        if isinstance(companions, Companions):
            index[part] = companions.index[part]
            if companions.is_component(part):
                companions.copy(part, folder / part)
        else:
            companions[part].save_pretrained(folder / part)
            index[part] = [type(companions[part]).__module__.split(".")[0], type(companions[part]).__name__]


def _write_card(
    student: Student,
    teacher: Teacher,
    folder: Path,
    loading: str,
    origin: Origin,
    relation: Literal["adapter", "finetune"] = "finetune",
) -> None:
    """Write the card and its picture, which is drawn here if it is not given and the teacher needs no prompts.

    Adapters whose base was left in its files draw none.
    """
    if origin.picture is not None:
        shutil.copyfile(origin.picture, folder / "samples.png")
    elif teacher.draws_images and not teacher.takes_text and not any(x.is_meta for x in student.parameters()):
        draw_samples(student, teacher, folder / "samples.png")
    card = model_card(student, loading, origin, (folder / "samples.png").exists(), relation)
    (folder / "README.md").write_text(card)
