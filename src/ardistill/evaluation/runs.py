"""Run folders: which run a student belongs to, and which trajectories that run was trained on."""

from __future__ import annotations

import os
from pathlib import Path

from ardistill.errors import say
from ardistill.files import read_json
from ardistill.student import StudentConfig
from ardistill.teacher import check_same_teacher
from ardistill.trajectories import Manifest


def is_run(path: Path) -> bool:
    """Whether ``distill`` wrote this folder: it has settings, and a log or checkpoints."""
    return (path / "config.json").is_file() and ((path / "metrics.jsonl").is_file() or (path / "checkpoints").is_dir())


def run_of(student: str | Path) -> tuple[Path, str]:
    """The run that a student belongs to, found by the contents of the folders, not by their names.

    Args:
        student: A run, its subfolder ``student`` or ``adapters``, one of its checkpoints, or any other folder.

    Returns:
        The run's absolute path, or the given one if no run is found; links are not resolved. Then ``-step-00000500``
        (or the like) for a checkpoint, an empty string otherwise.
    """
    path = Path(os.path.abspath(student))
    if is_run(path):
        return path, ""
    if path.parent.name == "checkpoints" and is_run(path.parents[1]):
        return path.parents[1], f"-{path.name}"
    return (path.parent if path.name in ("student", "adapters") and is_run(path.parent) else path), ""


def evaluation_folder(student: str | Path) -> Path:
    """Where `evaluate` writes by default: ``evaluation`` in the student's run, ``evaluation-step-...`` of a checkpoint.

    Args:
        student: As for `run_of`.
    """
    run, step = run_of(student)
    return run / f"evaluation{step}"


def trained_in(student: str | Path) -> Path:
    """The run that a student was trained in, following a link if need be; the student's own folder if none is found."""
    run = run_of(student)[0]
    return run if is_run(run) else run_of(os.path.realpath(student))[0]


def trained_on(run: Path) -> tuple[int, str | None]:
    """Seed of the trajectories that a run was trained on, and the student it started from, if any.

    Raises:
        ValueError: The run's ``config.json`` lacks the seed or is damaged.
    """
    settings = run / "config.json"
    found = read_json(settings)
    try:
        start = found.get("start") or {}
        return int(found["data"]["seed"]), start.get("student") if isinstance(start, dict) else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{settings}: expected the settings of a run, which distill writes, with data.seed; restore it"
        ) from error


def check_held_out(student: str | Path, config: StudentConfig, manifest: Manifest) -> None:
    """Check that trajectories are the teacher's, have the student's guidance, and were not trained on.

    The runs that the student's run started from are checked too. If a run's settings are missing, a line on stderr says
    that the check was not possible.

    Args:
        student: The student's folder.
        config: The student's configuration.
        manifest: The trajectories' manifest.

    Raises:
        ValueError: The trajectories are from another teacher, at another guidance, or from the seed of the training.
    """
    check_same_teacher(str(student), config, manifest, "record held-out trajectories of its teacher")
    (low, high), (lowest, highest) = config.guidance_range, manifest.guidance_range
    if not low <= lowest <= highest <= high:
        raise ValueError(
            f"{student} was distilled at guidance {low:g} to {high:g}, the trajectories have {lowest:g} to "
            f"{highest:g}; record held-out trajectories at the student's guidance"
        )
    run, checked = trained_in(student), set()
    while run not in checked:
        checked.add(run)
        if not is_run(run):
            say(
                f"{student}: not checked whether the trajectories are held out, because {run} has no settings of a "
                f"run; make sure that the student was not trained on trajectories of seed {manifest.seed}"
            )
            return
        seed, start = trained_on(run)
        if seed == manifest.seed:
            raise ValueError(
                f"expected held-out trajectories, these are of the seed ({manifest.seed}) that {student} was trained "
                "on; record others with another --seed"
            )
        run = trained_in(start) if start else run
