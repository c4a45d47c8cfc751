"""What becomes of ardistill.evaluation; removed with it."""

# mypy: ignore-errors
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ardistill import errors


@dataclass(frozen=True)
class JudgeConfig:
    """x"""

    features: str | None = None
    """x"""
    feature_weights: str | None = None
    """x"""
    reference: str | None = None
    """x"""
    clip: str | None = None
    """x"""
    preference: str | None = None
    """x"""


def study_arms(recipe, out, arms, device):
    from ardistill.studies.study import Study

    study = Study(recipe, out, device)
    lineages = study.lineages(arms or study.facts["arms"])  # all names and options, before the first is trained
    for name in lineages:
        study.held_out(study.student(name).config.knots)
    students = [str(study.out / "arms" / name) for name in lineages]
    return students, str(study.out / "trajectories" / "held_out"), str(study.out / "comparison")


def compare_students(students, trajectories, out, judging, *, teacher, device):
    features, feature_weights, reference, clip, preference = (
        judging.features,
        judging.feature_weights,
        judging.reference,
        judging.clip,
        judging.preference,
    )
    from dataclasses import replace

    from ardistill.evaluation import Sampler, exposure_bias, exposure_bias_plot
    from ardistill.evaluation import compare as run
    from ardistill.files.store import check_folder, write_whole
    from ardistill.student import Student
    from ardistill.teacher.recorded import load_recorded_teacher
    from ardistill.trajectories import TrajectoryDataset

    check_folder(out)
    names = [f"{run.name}{step}" for run, step in map(run_of, students)]
    if len(set(names)) < len(names) or any(re.fullmatch(r"teacher|solver(_\d+)?", name) for name in names):
        raise ValueError(
            f"expected run folders of different names, other than teacher and solver; got {names}: rename one, or link "
            "to it under another name"
        )
    loaded = {name: Student.from_pretrained(path, device) for name, path in zip(names, students, strict=True)}
    sets = {s.config.knots: TrajectoryDataset(trajectories, s.config.knots) for s in loaded.values()}
    manifest = next(iter(sets.values())).manifest
    for path, student in zip(students, loaded.values(), strict=True):
        _check_held_out(path, student.config, manifest)
    teacher_model = load_recorded_teacher(manifest, teacher, device)
    samplers = {"teacher": Sampler.of_teacher(teacher_model, manifest.solver_steps)}
    samplers |= {
        f"solver_{n}": Sampler.of_teacher(teacher_model, n) for n in sorted({knots.num_steps for knots in sets})
    }
    samplers |= {name: Sampler.of_student(student) for name, student in loaded.items()}
    judge = _judge(manifest.teacher, teacher_model, features, feature_weights, reference, device)
    judge = replace(judge, text_scores=_text_scores(clip, preference, device))
    data = next(iter(sets.values()))
    states, _, condition = data.stacked()
    prompts = [data.prompts[i] for i in data.labels] if data.prompts else None
    images = teacher_model.decode(states[:, -1])
    options: dict[str, Any] = {"labels": data.labels, "prompts": prompts, "baseline": names[0]}
    found = run(teacher_model, images, samplers, states[:, 0], condition, judge, **options)
    curves = {}
    for name, student in loaded.items():
        states, denoised, condition = sets[student.config.knots].stacked(slice(200))
        curves[name] = exposure_bias(student, teacher_model, states, denoised, condition, manifest.knots)
    Path(out).mkdir(parents=True, exist_ok=True)
    exposure_bias_plot(curves, Path(out) / "exposure_bias.png")
    pictures = {"Error per step": Path(out) / "exposure_bias.png"}
    found.write(out, f"Students of {manifest.teacher}", columns=data.prompts or None, pictures=pictures)
    write_whole(Path(out) / "figures.md", found.markdown().encode())
    return found


def _check_held_out(path: str, config: Any, manifest: Any) -> None:
    if config.fingerprint and config.fingerprint != manifest.fingerprint:
        raise ValueError(
            f"{path} is a student of {config.teacher} ({config.fingerprint[:12]}), the trajectories are of "
            f"{manifest.teacher} ({manifest.fingerprint[:12]})"
        )
    (low, high), (lowest, highest) = config.guidance_range, manifest.guidance_range
    if not low <= lowest <= highest <= high:
        raise ValueError(
            f"{path} was distilled at guidance {low:g} to {high:g}, the trajectories have {lowest:g} to {highest:g}; "
            "record held-out ones with the student's"
        )
    run, checked = _trained_in(path), set()
    while run not in checked:  # then what it started from
        checked.add(run)
        settings = run / "config.json"
        if not _is_run(run):
            errors.say(
                f"{path}: not checked whether the trajectories are held out, there are no settings of a run in {run}; "
                f"see that its training had another seed than {manifest.seed}"
            )
            return
        seed, start = _trained_on(settings)
        if seed == manifest.seed:
            raise ValueError(
                f"expected held-out trajectories, these are of the seed ({manifest.seed}) that {path} was trained on; "
                "record others with another --seed"
            )
        run = _trained_in(start) if start else run


def _trained_in(student: str) -> Path:
    """The run that a student, or what a link to it leads to, was trained in; its own folder where there is none."""
    run = run_of(student)[0]
    return run if _is_run(run) else run_of(os.path.realpath(student))[0]


def _is_run(path: Path) -> bool:
    """Whether distill or finetune made this folder: it has settings, and a log or checkpoints."""
    return (path / "config.json").is_file() and ((path / "metrics.jsonl").is_file() or (path / "checkpoints").is_dir())


def run_of(student: str) -> tuple[Path, str]:
    """The run that a student is of, or the student's own folder; and "-step-..." of a checkpoint, else "".

    What lies in a folder says what it is, not what it is called; its name is the one that the user gave.
    """
    path = Path(os.path.abspath(student))
    if _is_run(path):
        return path, ""
    if path.parent.name == "checkpoints" and _is_run(path.parents[1]):
        return path.parents[1], f"-{path.name}"
    return (path.parent if path.name == "student" and _is_run(path.parent) else path), ""


def _trained_on(settings: Path) -> tuple[int, str | None]:
    """Seed of the trajectories that a run was trained on, and the student that it started from, if it did."""
    from ardistill.files.store import read_json

    found = read_json(settings)
    try:
        start = found.get("start") or {}
        return int(found["data"]["seed"]), start.get("student") if isinstance(start, dict) else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{settings}: expected the settings of a run, which distill writes, with data.seed; restore it"
        ) from error


def _judge(
    teacher: str, model: Any, features: str | None, weights: str | None, reference: str | None, device: str
) -> Any:
    from ardistill.evaluation import Judge, feature_network
    from ardistill.evaluation.reference import NETWORKS
    from ardistill.files.images import open_images
    from ardistill.teacher.loading import ZOO

    embedded = teacher.removeprefix("zoo/") if teacher in ZOO else None
    if embedded and features in (None, NETWORKS[embedded]) and reference is None:
        return Judge.zoo(embedded, device)
    real = open_images(reference, model.image_channels) if reference else None
    if real is not None:
        height, width = (n * model.pixels_per_latent for n in model.sample_shape[-2:])
        if real.size != (width, height):
            errors.say(
                f"the images of {reference} are {real.size[0]}x{real.size[1]}, those that are drawn {width}x{height}: "
                "a published FID has both alike"
            )
    network = feature_network(features or "inception", weights=weights, device=device)
    return Judge.of_images(network, real) if real is not None else Judge(network)


def _text_scores(clip: str | None, preference: str | None, device: str) -> dict[str, Any]:
    from ardistill.evaluation.text_scores import TextScorer

    found: dict[str, Any] = {}
    if clip:
        found["clip_score"] = TextScorer.from_pretrained(clip, device=device).clip_score
    if preference:
        found["preference"] = TextScorer.from_pretrained(preference, device=device).preference
    return found
