"""Where a student comes from: what its run, its evaluation and its teacher's card tell of it, and nothing else."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, constants, hf_hub_download

from ardistill.evaluation import evaluation_folder, is_run, run_of
from ardistill.files import read_json
from ardistill.teacher import ZOO, Teacher, hub_id, split_name

_LICENSE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Origin:
    """Facts for a card. What is not known is empty, and the card leaves it out or says that it is not known."""

    name: str = ""
    """Name of the student's run."""
    step: str = ""
    """The checkpoint that the student is, such as ``step-00000500``; empty for a finished run."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The run's ``config.json``."""
    environment: dict[str, Any] = field(default_factory=dict)
    """The run's ``environment.json``: versions, device and the time that the training took."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The ``metrics.json`` of the student's evaluation."""
    figures: str = ""
    """The same as Markdown."""
    picture: str | Path | None = None
    """Grid of samples: the evaluation's, else the training's last one."""
    license: dict[str, str] = field(default_factory=dict)
    """The student's ``license`` with ``license_name`` and ``license_link``, as metadata of a card."""
    teacher_license: dict[str, str] = field(default_factory=dict)
    """The same of the teacher's card."""
    datasets: list[str] = field(default_factory=list)
    """Hub ids of the data sets that the student was trained on."""
    second: Origin | None = None
    """Where the second student comes from, if there are two transformers."""


def find_origin(
    student: str | Path | None, teacher: Teacher, license: str | None = None, datasets: Sequence[str] = ()
) -> Origin:
    """Gather what is known of a student.

    Args:
        student: The folder that the student was read from: a run, or one of its checkpoints; None for one in memory.
        teacher: Its teacher, from whose card the licence is inherited.
        license: The student's licence, if it is not inherited.
        datasets: Hub ids of the data sets that it was trained on, besides one that the run itself names.

    Raises:
        ValueError: ``license`` is no identifier of a licence, ``datasets`` are no Hub ids, or a file of the run is
            damaged.
    """
    inherited = teacher_license(teacher.name)
    facts: dict[str, Any] = {"license": inherited, "teacher_license": inherited, "datasets": [*datasets]}
    if license is not None:
        facts["license"] = checked_license(license, inherited)
    if wrong := [x for x in datasets if not re.fullmatch(r"[\w.-]+/[\w.-]+", x)]:
        raise ValueError(f"expected Hub ids of data sets, such as you/recording, got {wrong[0]!r}")
    if student is None:
        return Origin(**facts)
    run, step = run_of(student)
    evaluation = evaluation_folder(student)
    if (evaluation / "figures.md").is_file():
        facts |= {"figures": (evaluation / "figures.md").read_text(), "picture": evaluation / "samples.png"}
        facts |= {"metrics": _read(evaluation / "metrics.json")}
    elif grids := sorted((run / "samples").glob(f"{step[1:] or 'step-*'}.png")):
        facts["picture"] = grids[-1]
    if is_run(run):
        facts |= {"name": run.name, "step": step[1:], "settings": read_json(run / "config.json")}
        facts["environment"] = found = _read(run / "environment.json")
        if found.get("dataset"):
            facts["datasets"] = [*dict.fromkeys([found["dataset"], *datasets])]
    return Origin(**facts)


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file.

    Raises:
        ValueError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it, and the card does without it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, got {type(found).__name__}; delete it")
    return found


def teacher_license(name: str) -> dict[str, str]:
    """The licence that the metadata of a teacher's card name; empty if there is no card, or none is named.

    The card is the README.md of the teacher's folder, or of its repository on the Hub, or in the Hub's cache.

    Args:
        name: The teacher's name, as ``Teacher.from_pretrained`` takes it; empty if it has none.
    """
    base, (place, revision, _) = hub_id(name), split_name(name)
    path = ZOO.get(name, Path(place)) / "README.md"
    if base is not None:
        with contextlib.suppress(Exception):  # offline, or it has no card: the Hub's client raises many kinds
            path = Path(hf_hub_download(base, "README.md", revision=revision))
    if not name or not path.is_file():
        return {}
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data
    except (ValueError, OSError, yaml.YAMLError):
        return {}
    found = {key: str(data.get(key)) for key in _LICENSE if data.get(key)}
    link = found.pop("license_link", "")
    if "://" in link:
        found["license_link"] = link
    elif link and base is not None:  # a file beside the teacher's card
        found["license_link"] = f"{constants.ENDPOINT}/{base}/blob/{revision or 'main'}/{link}"
    return found if "license" in found else {}


def checked_license(license: str, inherited: dict[str, str]) -> dict[str, str]:
    """A licence that was given, as metadata; the teacher's own entries if it is the same.

    Raises:
        ValueError: It is no identifier of a licence.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            "expected the identifier of a licence as the Hub writes it, such as apache-2.0, mit or other, got "
            f"{license!r}"
        )
    return inherited if inherited.get("license") == license else {"license": license}
