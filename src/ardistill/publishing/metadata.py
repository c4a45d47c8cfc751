"""The metadata of a card, which the Hub reads: what the model is, what it is made of, and what was measured."""

from __future__ import annotations

import math
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from ardistill.evaluation.tables import COLUMNS
from ardistill.publishing.origin import Origin
from ardistill.student import Student
from ardistill.teacher import hub_id, public_name
from ardistill.trajectories.parquet import TAG

WIDGET = 3
"""Prompts that the widget of a text-to-image student offers."""
_UNMEASURED = ("ms_per_image", "seeds")
"""Columns that are no result: milliseconds need the device beside them, which the table's notes do not name."""


def card_metadata(
    student: Student, origin: Origin, relation: Literal["adapter", "finetune"] = "finetune"
) -> ModelCardData:
    """The metadata of a student's card; what is not known is left out.

    Args:
        student: The student.
        origin: Where it comes from.
        relation: What the folder's weights are to the teacher's: all of them (``finetune``), or an ``adapter``.
    """
    base, task = hub_id(student.config.teacher), _task(student)
    results = _results(student, origin, task)
    prompts = origin.metrics.get("prompts", [])[:WIDGET] if student.family.encode is not None else []
    entries: dict[str, Any] = {
        **origin.license,
        "library_name": "diffusers",
        "base_model": base,
        "base_model_relation": relation if base else None,
        "datasets": origin.datasets or None,
        "pipeline_tag": task,
        "tags": [TAG, "autoregressive-distillation", "few-step"],
        "widget": [{"text": prompt} for prompt in prompts] or None,
        "model_name": origin.name if results else None,
        "eval_results": results or None,
    }
    return ModelCardData(**entries)


def _task(student: Student) -> str:
    """The Hub's name of what the student does."""
    if student.family.encode is None:
        return "unconditional-image-generation"
    shapes = student.config.sample_shapes
    return "text-to-video" if any(len(shape) == 4 and shape[1] > 1 for shape in shapes) else "text-to-image"


def _results(student: Student, origin: Origin, task: str) -> list[EvalResult]:
    """What `evaluate` measured of the student, one result a figure."""
    found = origin.metrics
    figures = found.get("arms", {}).get(found.get("baseline"), {})
    network = found.get("feature_network", "")
    facts = {"feature_network": network, "num_samples": found.get("num_samples")}
    results = []
    for name, value in figures.items():
        if name not in COLUMNS or name in _UNMEASURED or value is None or not math.isfinite(value):
            continue
        kind, words = name, COLUMNS[name].head.replace("\n", " ").strip(" ↑↓")
        if name.startswith("fd"):
            fd = "FID" if network == "inception" else f"FD-{network}"  # as the networks themselves call it
            kind, words = name.replace("fd", "fid") if fd == "FID" else name, words.replace("FD", fd)
        results.append(
            EvalResult(
                task_type=task,
                dataset_type="trajectories",
                dataset_name=f"Held-out trajectories of {public_name(student.config.teacher)}",
                metric_type=kind,
                metric_name=words,
                metric_value=value if isinstance(value, int) else float(f"{value:.6g}"),
                metric_args=None if name in ("nfe", "macs_per_image") else facts,
            )
        )
    return results
