"""Command line: one subcommand per step of the way. Figures go to stdout, what is going on to stderr."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import jsonargparse
import yaml

from ardistill import errors
from ardistill.config import AdversarialConfig, CostConfig, QuickstartConfig, TrainingConfig
from ardistill.progress import calm_libraries

Result = dict[str, Any]
"""What a command found; its entry ``text`` is for people, all others are for ``--json``."""


def _quickstart(**options: Any) -> Result:
    """Record, distil, compare and report on the embedded teacher: offline, ten minutes on two cores."""
    from ardistill.studies.quickstart import quickstart as run

    config = QuickstartConfig(**options)
    found = run(config)
    text = f"{found.table()}\nReport: {Path(config.out) / 'report.html'}"
    return found.to_dict() | {"out": config.out, "text": text}


def _cost(**options: Any) -> Result:
    """Count MACs, memory, disk and time of a distillation before it is begun; nothing but a config is downloaded."""
    from dataclasses import asdict

    from ardistill.planning.cost import describe, plan

    config = CostConfig(**options)
    found = plan(config)
    return asdict(found) | {"text": describe(found, config)}


def _record(
    teacher: str,
    out: str,
    num_trajectories: int,
    guidance_scale: float | list[float],
    guidance_channels: int | None = None,
    prompts: str | None = None,
    negative_prompt: str = "",
    height: int | list[int] | None = None,
    width: int | list[int] | None = None,
    num_frames: int = 1,
    solver_steps: int = 24,
    num_steps: list[int] = [1, 2, 3, 4, 6, 8],  # noqa: B006  # jsonargparse shows it as the default
    seed: int = 0,
    shard_size: int = 256,
    mixed_precision: Literal["no", "bf16"] = "no",
    dtype: Literal["float32", "float16"] = "float32",
    manifest_only: bool = False,
    device: str = "auto",
) -> Result:
    """Solve the teacher's ODE from seeded noise and keep the trajectories.

    Any number of processes may record into one folder at a time: the same command started several times, on one machine
    or many, or `accelerate launch -m ardistill record ...`.

    Args:
        teacher: zoo/fashion, zoo/emoji, zoo/scenes, a diffusers folder, a Hub id or an original DiT's .pt file.
        out: Folder of the trajectories, or a URL (s3://bucket/folder); the same command again makes what is missing.
        num_trajectories: How many; the labels are balanced.
        guidance_scale: Classifier-free guidance that the student will absorb; 1 is none. Two numbers, [1.0, 4.0]: drawn
            between them for each trajectory, and an input of the student, so that its user can choose.
        guidance_channels: Guide only so many first channels (the original DiT: 3); all if not given.
        prompts: For a text-to-image teacher: a .txt file of one prompt a line, a .jsonl, .json, .csv, .tsv or .parquet
            file or the Hub id of a data set with one column prompt, text or caption, or another one that is named
            behind a colon; zoo/scenes: the embedded teacher's. Used in turn.
        negative_prompt: Of the unguided branch.
        height: Of the images, in pixels; the model's own if not given. Several, [512, 768]: a shard has one of them.
        width: Same, as many.
        num_frames: Of a video, as its pipeline counts them.
        solver_steps: Steps of the ODE solver.
        num_steps: Step counts of the students to come; the states that they need are kept.
        seed: Of the noise; take another one for held-out trajectories.
        shard_size: Trajectories solved and written together.
        mixed_precision: bf16: matrix products in bfloat16, the solver's states in float32.
        dtype: What states are stored in; float16 takes half the disk and rounds each to 3 digits.
        manifest_only: Leave the shards out, for distill --online.
        device: auto, cpu, cuda, cuda:1, ...
    """
    from ardistill.files import Store
    from ardistill.teacher import Teacher
    from ardistill.trajectories import load_prompts
    from ardistill.trajectories import record as run

    scales = guidance_scale if isinstance(guidance_scale, list) else [guidance_scale]
    heights, widths = (x if isinstance(x, list) else [x] for x in (height, width))
    if not 1 <= len(scales) <= 2:
        raise ValueError(f"expected one guidance scale, or the lowest and the highest, got {scales}")
    if num_frames < 1:
        raise ValueError(f"expected num_frames of 1 (an image) or more, got {num_frames}")
    if len(heights) != len(widths) or not heights:
        raise ValueError(f"expected as many heights as widths, got {heights} and {widths}")
    sizes = zip(heights, widths, strict=True)
    loaded = Teacher.from_pretrained(
        teacher,
        height=heights[0],
        width=widths[0],
        num_frames=num_frames,
        guidance_scale=scales[0],
        guidance_channels=guidance_channels,
        negative_prompt=negative_prompt,
        device=device,
    )
    manifest = run(
        loaded,
        out,
        num_trajectories,
        prompts=load_prompts(prompts) if prompts else None,
        guidance_range=(scales[0], scales[-1]),
        sample_shapes=[
            loaded.sample_shape if size == (None, None) else loaded.latent_shape(*size, num_frames) for size in sizes
        ],
        solver_steps=solver_steps,
        num_steps=num_steps,
        seed=seed,
        shard_size=shard_size,
        mixed_precision=mixed_precision,
        dtype=dtype,
        manifest_only=manifest_only,
    )
    size = sum(Store(out).sizes().values())
    made = "the manifest of " if manifest_only else ""
    text = f"{made}{manifest.num_trajectories} trajectories of {teacher} in {out} ({size / 1e6:,.1f} MB)"
    facts = {"num_trajectories": manifest.num_trajectories, "num_shards": manifest.num_shards, "bytes": size}
    return {"out": out, "fingerprint": manifest.fingerprint, **facts, "text": text}


def _info(trajectories: str) -> Result:
    """Say what was recorded, how much of it is there, and which students it serves.

    Args:
        trajectories: Folder or URL that record wrote.
    """
    from ardistill.trajectories import describe, info

    found = info(trajectories)
    return found | {"text": describe(found)}


def _verify(trajectories: str) -> Result:
    """Read every byte and check every checksum; exit status 1 if anything is missing or broken.

    Args:
        trajectories: Folder or URL that record wrote.
    """
    from dataclasses import asdict

    from ardistill.trajectories import describe_inspection, verify

    found = verify(trajectories)
    return asdict(found) | {"whole": found.whole, "text": describe_inspection(found)}


def _repair(trajectories: str, teacher: str | None = None, device: str = "auto") -> Result:
    """Make again what is missing or broken, and remove what killed processes left half done.

    Args:
        trajectories: Folder or URL that record wrote.
        teacher: Where the teacher is now; the name it was recorded under if not given.
        device: auto, cpu, cuda, ...
    """
    from ardistill.files import Store
    from ardistill.teacher import load_recorded_teacher
    from ardistill.trajectories import Manifest, repair

    loaded = load_recorded_teacher(Manifest.read(Store(trajectories)), teacher, device)
    found = repair(loaded, trajectories)
    text = f"{len(found.remade)} files made again in {trajectories}"
    if found.largest_difference is not None:
        apart = f"{found.largest_difference:.1e} of the largest value apart" if found.largest_difference else "equal"
        text += f"; an intact shard and the same made here are {apart}"
    return {"remade": found.remade, "largest_difference": found.largest_difference, "text": text}


def _show(
    trajectories: str,
    out: str = "trajectories.png",
    count: int = 4,
    first: int = 0,
    num_steps: int | None = None,
    teacher: str | None = None,
    device: str = "auto",
) -> Result:
    """Draw trajectories, decoded: a row each, from noise to image.

    Args:
        trajectories: Folder or URL that record wrote.
        out: PNG file.
        count: How many.
        first: Number of the first one.
        num_steps: Steps between the states that are shown; as many as were recorded, up to 8, if not given.
        teacher: Where the teacher is now, whose VAE decodes; the name it was recorded under if not given.
        device: auto, cpu, cuda, ...
    """
    from ardistill.evaluation import trajectory_grid
    from ardistill.teacher import load_recorded_teacher
    from ardistill.trajectories import TrajectoryDataset, info

    if count < 1:
        raise ValueError(f"expected 1 trajectory or more, got {count}")
    data = TrajectoryDataset(trajectories, info(trajectories)["num_steps"][-1] if num_steps is None else num_steps)
    rows = range(first, min(first + count, len(data)) if first < len(data) else first + 1)
    trajectory_grid(load_recorded_teacher(data.manifest, teacher, device), data, out, rows)
    return {"out": out, "count": len(rows), "text": f"{len(rows)} trajectories in {out}"}


def _export_trajectories(trajectories: str, out: str) -> Result:
    """Write trajectories as Parquet, as `datasets` loads it; `hf upload --repo-type dataset` publishes it.

    Args:
        trajectories: Folder or URL that record wrote.
        out: New folder or URL.
    """
    from ardistill.trajectories import export_parquet

    count = export_parquet(trajectories, out)
    return {"out": out, "count": count, "text": f'{count} trajectories: datasets.load_dataset("{out}", split="train")'}


def _distill(
    trajectories: str,
    out: str,
    num_steps: int = 4,
    knots: list[int] | None = None,
    history_layers: int = 6,
    mask: Literal["M1", "M2", "M3", "M4"] = "M4",
    target: Literal["state", "denoised", "anchored"] = "state",
    output: Literal["solver", "direct"] = "solver",
    gated: bool = True,
    lora_rank: int = 0,
    conditioning: Literal["recorded", "uniform"] = "recorded",
    teacher: str | None = None,
    start: str | None = None,
    online: bool = False,
    draws: Literal["rows", "shards"] | None = None,
    device: str = "auto",
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
) -> Result:
    """Train a student on recorded trajectories; the same command again resumes.

    Run it under `accelerate launch -m ardistill distill ...` for several GPUs.

    Args:
        trajectories: Folder that record wrote.
        out: Run folder: settings, log, checkpoints, sample grids; the student ends in its subfolder student.
        num_steps: Steps of the student, 1 to 8.
        knots: Which of the solver's recorded states the steps run between, as [0, 6, 15, 21, 24] of 24 solver steps;
            uniform if not given.
        history_layers: N, how many of the lowest layers see earlier steps; 0 is step distillation.
        mask: Which earlier steps they see: M1 none, M2 the one before, M3 the noise, M4 all.
        target: state (the ODE's states), denoised (x0 estimates, the authors' code) or anchored (x0 estimates,
            re-noised with the exact noise).
        output: solver (keeps the teacher's meaning) or direct (a head per step emits the target).
        gated: Earlier steps are seen through a gate per layer that starts closed, so that training starts where a
            student without history does; false: one softmax over all steps, as in the paper.
        lora_rank: Train low-rank adapters (PEFT) beside the teacher's weights, which teacher and student share; 0: all
            weights are trained. The adapters end in the run's subfolder adapters, merged in student.
        conditioning: Times that the network is told: recorded, or uniform as in the authors' code.
        teacher: Where the teacher of the trajectories is now; the name it was recorded under if not given.
        start: A student to go on from in place of the teacher's weights: a run, or one of its checkpoints, as
            runs/x/checkpoints/step-00004000. The options above have to be its own.
        online: Make the trajectories of a manifest (record --manifest_only true) as they are needed, instead of reading
            them: no disk, more time. Each shard is solved whole: let its size be the batch size.
        draws: Batches of any rows, or of as few shards as hold a batch; shards for online and a URL if not given, else
            rows.
        device: auto, cpu, cuda, ...; of several processes each has its own.
        training: How the student is trained.
    """
    from ardistill.devices import resolve_device
    from ardistill.evaluation import distance_to_solver, validation_grid
    from ardistill.files import Store
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher
    from ardistill.training import distill as run
    from ardistill.training.distill import check_run_folder
    from ardistill.trajectories import Manifest, OnlineTrajectories, TrajectoryDataset

    check_run_folder(out)
    if knots and len(knots) != num_steps + 1:
        raise ValueError(f"expected {num_steps + 1} knots for {num_steps} steps, got {knots}")
    where = resolve_device(device)
    loaded = load_recorded_teacher(Manifest.read(Store(trajectories)), teacher, "cpu")
    if online:
        data: TrajectoryDataset = OnlineTrajectories(trajectories, knots or num_steps, loaded, where, draws=draws)
    else:
        data = TrajectoryDataset(trajectories, knots or num_steps, draws=draws)
    config = data.student_config(
        history_layers,
        mask=mask,
        target=target,
        output=output,
        gated=gated,
        lora_rank=lora_rank,
        conditioning=conditioning,
    )
    resumes = any(Path(out, "checkpoints").glob("step-*"))  # then the start is no longer needed
    student = Student.from_teacher(loaded, config) if start is None or resumes else _start(start, config)
    student.to(where)
    if output == "solver":
        states, _, condition = data.stacked(data.buckets[0][:10])
        distance = distance_to_solver(student, loaded.to(where), states[:, 0], condition)
        if not online:
            loaded.transformer.to("cpu")
        errors.say(f"at its start the student draws {distance:.1%} from the teacher's {num_steps}-step solver")
    validate = validation_grid(loaded, data, Path(out) / "samples") if loaded.draws_images else None
    run(student, data, out, training, start=start, validate=validate)
    loss = _log(out)[-1].get("loss", math.nan)
    text = f"{num_steps}-step student in {out}/student, samples in {out}/samples; loss {loss:.5f}"
    return {"out": out, "student": str(Path(out) / "student"), "loss": loss, "text": text}


def _log(out: str) -> list[dict[str, Any]]:
    """Lines of a run's log; an empty one where the log was taken away."""
    path = Path(out) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else [{}]


def _start(path: str, config: Any) -> Any:
    """The student there, if it is one as ``config`` says."""
    from dataclasses import asdict

    from ardistill.student import Student

    found = Student.from_pretrained(path, "cpu")
    there, asked = asdict(found.config), asdict(config) | {"teacher": found.config.teacher}  # its fingerprint decides
    differing = [f"{name} is {x!r} there, {asked[name]!r} asked for" for name, x in there.items() if x != asked[name]]
    if differing:
        raise ValueError(f"{path} is another student ({'; '.join(differing)}); give its own options and trajectories")
    return found.requires_grad_(True)


def _encode(
    teacher: str,
    images: str,
    out: str,
    height: int | None = None,
    width: int | None = None,
    limit: int | None = None,
    device: str = "auto",
) -> Result:
    """Encode real images into latents with their labels or captions, for finetune.

    Args:
        teacher: Whose VAE and text encoders encode.
        images: A folder of images (a subfolder per class, or metadata.jsonl, .csv or .parquet with file_name and a
            caption or label), or the id of a data set. Which class a folder stands for is told: the one that the
            teacher calls so, or the number that it is called.
        out: File to write, .safetensors.
        height: Of the images, in pixels; the model's own if not given. Images are scaled and cut to it.
        width: Same.
        limit: Only so many first images.
        device: auto, cpu, cuda, ...
    """
    from ardistill.teacher import Teacher
    from ardistill.training.real_images import encode_images

    loaded = Teacher.from_pretrained(teacher, height=height, width=width, device=device)
    count = encode_images(images, loaded, out, limit=limit)
    return {"out": out, "count": count, "text": f"{count} images in {out}"}


def _finetune(
    student: str,
    trajectories: str,
    real: str,
    out: str,
    teacher: str | None = None,
    device: str = "auto",
    training: TrainingConfig = TrainingConfig(inputs="student", learning_rate=1e-5),  # noqa: B008
    adversarial: AdversarialConfig = AdversarialConfig(),  # noqa: B008
) -> Result:
    """Train a distilled student further against a discriminator on real data (R+D); the same command again resumes.

    Args:
        student: Run folder of distill or finetune, or one of its checkpoints.
        trajectories: Folder that record wrote: the regression goes on beside the discriminator.
        real: File that encode wrote.
        out: Run folder, as distill's; with adversarial.png, the discriminator's health.
        teacher: Where the teacher of the trajectories is now; the name it was recorded under if not given.
        device: auto, cpu, cuda, ...; of several processes each has its own.
        training: As in distill. What the discriminator is shown is the last step of the pass: drawn from noise with
            inputs student, from the teacher's last state with inputs teacher.
        adversarial: How the discriminator is trained and what it counts for.
    """
    from ardistill.devices import resolve_device
    from ardistill.evaluation import adversarial_plot, validation_grid
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher
    from ardistill.training import distill as run
    from ardistill.training.adversary import Adversary
    from ardistill.training.distill import check_run_folder
    from ardistill.trajectories import TrajectoryDataset

    check_run_folder(out)
    where = resolve_device(device)
    loaded = Student.from_pretrained(student, where)
    data = TrajectoryDataset(trajectories, loaded.config.knots, loaded.config.fingerprint or None)
    found = load_recorded_teacher(data.manifest, teacher, where)
    adversary = Adversary.of_real(found, real, adversarial, seed=training.seed)
    validate = validation_grid(found, data, Path(out) / "samples") if found.draws_images else None
    run(loaded.requires_grad_(True), data, out, training, start=student, adversary=adversary, validate=validate)
    log = _log(out)
    adversarial_plot(log, Path(out) / "adversarial.png")
    text = f"{loaded.num_steps}-step student in {out}/student; discriminator in {out}/adversarial.png"
    return {"out": out, "student": str(Path(out) / "student"), **_numbers(log[-1]), "text": text}


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, float)}


def _sample(
    student: str,
    out: str = "samples.png",
    count: int = 20,
    class_labels: list[int] | None = None,
    prompt: str | None = None,
    prompts: str | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    teacher: str | None = None,
    device: str = "auto",
) -> Result:
    """Draw samples from a student, as a grid or for an evaluation suite.

    Args:
        student: Run folder of distill or finetune, one of its checkpoints, or what export wrote.
        out: PNG file of a grid; or .npz file of all images, for the ADM evaluation suite.
        count: Number of images.
        class_labels: Classes to draw, in turn; all classes if not given.
        prompt: What a text-to-image student is to draw.
        prompts: Several, as in record: a text or JSONL file, or the id of a data set. Drawn in turn.
        guidance_scale: For a student that is told of it; the middle of its range if not given.
        height: Of the images, in pixels; the first that it was distilled on if not given.
        width: Same.
        seed: Of the noise.
        teacher: Where its teacher is now, whose VAE decodes; the name it was recorded under if not given.
        device: auto, cpu, cuda, ...
    """
    from ardistill.evaluation import draw_samples
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher
    from ardistill.trajectories import load_prompts

    if prompt is not None and prompts:
        raise ValueError("expected a prompt or a file of prompts, got both")
    texts = [prompt] if prompt is not None else load_prompts(prompts) if prompts else None
    loaded = Student.from_pretrained(student, device)
    found = load_recorded_teacher(loaded.config, teacher, device)
    if height is not None or width is not None:
        found.sample_shape = found.latent_shape(height, width)
    conditions: dict[str, Any] = {"class_labels": class_labels, "prompts": texts, "guidance_scale": guidance_scale}
    draw_samples(loaded, found, out, count=count, seed=seed, **conditions)
    return {"out": out, "count": count, "text": f"{count} samples in {out}"}


def _evaluate(
    student: str,
    trajectories: str,
    out: str | None = None,
    teacher: str | None = None,
    features: str | None = None,
    feature_weights: str | None = None,
    reference: str | None = None,
    clip: str | None = None,
    preference: str | None = None,
    device: str = "auto",
) -> Result:
    """Measure a student beside its teacher and the teacher's own solver in as many steps.

    Args:
        student: Run folder of distill or finetune, or one of its checkpoints.
        trajectories: Held-out trajectories of its teacher (record with another seed): same noise for every arm.
        out: Folder for metrics.json, report.html and pictures; the run's subfolder evaluation if not given, or
            evaluation-step-... of a checkpoint.
        teacher: Where the teacher is now; the name it was recorded under if not given.
        features: Feature network: fashion-classifier, emoji-classifier, scenes-detector, inception, or a TorchScript
            file; the teacher's own for an embedded teacher, else inception.
        feature_weights: State dict of inception; downloaded if not given.
        reference: Folder of real images of one size, with all its subfolders, or an .npz file of ADM's suite with the
            images in arr_0: for FD to the data, KID, precision and recall; left out if not given.
        clip: Of prompts: a CLIP whose mean score is told, as openai/clip-vit-large-patch14, an id or a folder.
        preference: Of prompts: a CLIP fitted to human preference, as yuvalkirstain/PickScore_v1.
        device: auto, cpu, cuda, ...
    """
    run, step = _run_of(student)
    return _compare(
        [student],
        trajectories,
        out or str(run / f"evaluation{step}"),
        teacher=teacher,
        features=features,
        feature_weights=feature_weights,
        reference=reference,
        clip=clip,
        preference=preference,
        device=device,
    )


def _compare(
    students: list[str] | None = None,
    trajectories: str | None = None,
    out: str | None = None,
    recipe: str | None = None,
    arms: list[str] | None = None,
    teacher: str | None = None,
    features: str | None = None,
    feature_weights: str | None = None,
    reference: str | None = None,
    clip: str | None = None,
    preference: str | None = None,
    device: str = "auto",
) -> Result:
    """Measure students of one teacher side by side, from the same noise, with paired intervals against the first.

    Of finished runs (students, trajectories, out), or of a recipe's arms, which are recorded and trained on equal terms
    as far as they are not yet there (recipe, arms).

    Args:
        students: Folders that distill wrote; the first is the baseline of the paired intervals.
        trajectories: Held-out trajectories of their teacher (record with another seed).
        out: Folder for metrics.json, report.html, samples.png and exposure_bias.png; with a recipe, the folder of its
            runs, where they go into the subfolder comparison; the recipe's own if not given.
        recipe: YAML file with the sections record, held_out, distill, finetune and arms, as recipes/study_fashion.yaml.
        arms: Of the recipe, the first one is the baseline; all if not given.
        teacher: Where the teacher is now; the name it was recorded under if not given.
        features: Feature network: fashion-classifier, emoji-classifier, scenes-detector, inception, or a TorchScript
            file; the teacher's own for an embedded teacher, else inception.
        feature_weights: State dict of inception; downloaded if not given.
        reference: Folder of real images of one size, with all its subfolders, or an .npz file of ADM's suite with the
            images in arr_0: for FD to the data, KID, precision and recall; left out if not given.
        clip: Of prompts: a CLIP whose mean score is told, as openai/clip-vit-large-patch14, an id or a folder.
        preference: Of prompts: a CLIP fitted to human preference, as yuvalkirstain/PickScore_v1.
        device: auto, cpu, cuda, ...
    """
    from dataclasses import replace

    from ardistill.evaluation import Sampler, exposure_bias, exposure_bias_plot
    from ardistill.evaluation import compare as run
    from ardistill.files import check_folder, write_whole
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher
    from ardistill.trajectories import TrajectoryDataset

    if recipe:
        from ardistill.studies.study import Study

        if students or trajectories:
            raise ValueError("a recipe says which students and trajectories: leave those out")
        study = Study(recipe, out, device)
        lineages = study.lineages(arms or study.facts["arms"])  # all names and options, before the first is trained
        for name in lineages:
            study.held_out(study.student(name).config.knots)
        students = [str(study.out / "arms" / name) for name in lineages]
        trajectories, out = str(study.out / "trajectories" / "held_out"), str(study.out / "comparison")
    elif arms:
        raise ValueError("arms are a recipe's: name it with --recipe")
    if not students or not trajectories or not out:
        raise ValueError("expected a recipe, or one student or more, held-out trajectories and a folder for the report")
    check_folder(out)
    names = [f"{run.name}{step}" for run, step in map(_run_of, students)]
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
    return found.to_dict() | {"out": out, "text": f"{found.table()}\nReport: {Path(out) / 'report.html'}"}


def _export(student: str, out: str, teacher: str | None = None) -> Result:
    """Write a student as a diffusers folder that loads without this package; `hf upload` publishes it.

    The card carries the figures and the picture of `ardistill evaluate` if the run was evaluated, else its last grid.

    Args:
        student: Run folder of distill or finetune, or one of its checkpoints.
        out: New folder.
        teacher: Where the teacher is now, whose VAE comes along; the name it was recorded under if not given.
    """
    from ardistill.publishing import export as run
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher

    loaded = Student.from_pretrained(student, "cpu")
    folder, step = _run_of(student)
    evaluation = folder / f"evaluation{step}"
    figures = (evaluation / "figures.md").read_text() if (evaluation / "figures.md").is_file() else ""
    grids = sorted((folder / "samples").glob(f"{step[1:] or 'step-*'}.png"))
    picture = evaluation / "samples.png" if figures else grids[-1] if grids else None
    run(loaded, load_recorded_teacher(loaded.config, teacher, "cpu"), out, figures=figures, picture=picture)
    text = f'DiffusionPipeline.from_pretrained("{out}", trust_remote_code=True)'
    return {"out": out, "evaluated": bool(figures), "text": text}


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
    run = _run_of(student)[0]
    return run if _is_run(run) else _run_of(os.path.realpath(student))[0]


def _is_run(path: Path) -> bool:
    """Whether distill or finetune made this folder: it has settings, and a log or checkpoints."""
    return (path / "config.json").is_file() and ((path / "metrics.jsonl").is_file() or (path / "checkpoints").is_dir())


def _run_of(student: str) -> tuple[Path, str]:
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
    from ardistill.files import read_json

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
    from ardistill.teacher import ZOO

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


TRAJECTORIES: dict[str, Callable[..., Result]] = {
    "info": _info,
    "verify": _verify,
    "repair": _repair,
    "show": _show,
    "export": _export_trajectories,
}
"""What can be done with a recording: see what is there, check it, mend it, look at it, publish it."""


COMMANDS: dict[str, Callable[..., Result] | dict[str, Callable[..., Result]]] = {
    "quickstart": _quickstart,
    "cost": _cost,
    "record": _record,
    "trajectories": TRAJECTORIES,
    "distill": _distill,
    "encode": _encode,
    "finetune": _finetune,
    "sample": _sample,
    "evaluate": _evaluate,
    "compare": _compare,
    "export": _export,
}


CONFIGS = {"quickstart": QuickstartConfig, "cost": CostConfig}
"""Commands whose options are a configuration's fields; the others' are their functions' arguments."""


def _nearest(word: str, known: set[str]) -> str:
    """A hint for a word that is not known; empty if it is, or if nothing is near."""
    beginning = sorted(key for key in known if key.startswith(word))
    near = [] if word in known else difflib.get_close_matches(word, known, 1) or beginning
    return f"{word!r} is not known; did you mean {near[0]!r}?" if near else ""


def _check_recipe(path: str, parser: _Parser) -> None:
    """Refuse a recipe with a key that no command has, in whatever section it stands.

    Raises:
        ValueError: With the nearest key.
    """
    known = {"": set(parser.commands)} | {name: sub.known_keys() for name, sub in parser.commands.items()}

    def check(section: dict[str, Any], command: str, prefix: str) -> None:
        for key, value in section.items():
            name = f"{prefix}{key}"
            if not command and not isinstance(value, dict):
                raise ValueError(f"{path}, section {name}: expected options with their values, got {value!r}")
            if name not in known[command]:
                hint = _nearest(name, known[command])
                hint = hint or f"{name!r} is not known; known: {', '.join(sorted(known[command]))}"
                raise ValueError(f"{path}{', section ' + command if command else ''}: {hint}")
            if isinstance(value, dict):
                check(value, command or name, "" if not command else f"{name}.")

    try:
        recipe = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: expected a YAML mapping with a section per command, got {type(recipe).__name__}")
    check(recipe, "", "")


class _Parser(jsonargparse.ArgumentParser):
    """No abbreviations, and an unknown option or recipe key is answered with the nearest one that exists."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self.commands: dict[str, _Parser] = {}

    def known_keys(self) -> set[str]:
        """Options as written in a recipe, those of the subcommands with and without its name."""
        keys = {action.dest for action in self._actions if action.dest not in ("help", "==SUPPRESS==")}
        for command, parser in self.commands.items():
            keys |= {command} | parser.known_keys() | {f"{command}.{key}" for key in parser.known_keys()}
        return keys

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        hints = []
        if re.search(r"not accept|not expected|[Uu]nrecogni[sz]ed|invalid choice", message):
            for found in re.findall(r"--([\w.]+)|'([\w.]+)'", message):
                if hint := _nearest("".join(found), self.known_keys()):
                    hints.append(hint)
        words = " ".join([*dict.fromkeys(hints), *message.split()])
        prog = self.prog.replace(" [options]", "")
        errors.say(f"{prog}: error: {words} (--help says what there is)")
        sys.exit(2)


def build_parser() -> _Parser:
    """The parser of `ardistill`, its subcommands and their options from the functions above."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    description = "Distil a diffusion transformer into a student that draws in 1 to 5 steps (arXiv:2504.11295)."
    epilog = (
        "A recipe (YAML) has a section per command: ardistill --config recipes/fashion.yaml distill --out runs/mine"
    )
    parser = _Parser(prog="ardistill", description=description, epilog=epilog)
    parser.add_argument("--config", action="config", help="Recipe: a YAML file with a section per command.")
    parser.add_argument("--version", action="version", version=f"ardistill {errors.version()}")
    _add_commands(parser, COMMANDS, "command", "commands, in the order of the way")
    return parser


def _add_commands(parser: _Parser, commands: dict[str, Any], dest: str, title: str) -> None:
    added = parser.add_subcommands(dest=dest, title=title, help="One of them; --help behind it says what it takes.")
    for name, command in commands.items():
        if isinstance(command, dict):
            summary = "Look at recorded trajectories, check them, mend them, export them."
        else:
            summary = (command.__doc__ or "").partition("\n\n    Args:")[0]
        sub = parser.commands[name] = _Parser(description=summary.replace("\n    ", "\n"))
        added.add_subcommand(name, sub, help=summary.splitlines()[0])
        if isinstance(command, dict):
            _add_commands(sub, command, "action", "actions")
            continue
        sub.add_argument("--config", action="config", help="YAML file with options of this command.")
        sub.add_argument("--json", action="store_true", help="Print the result as JSON, and nothing else, on stdout.")
        sub.add_argument("--debug", action="store_true", help="Show where an error came from.")
        if name in CONFIGS:
            sub.add_class_arguments(CONFIGS[name], as_group=False)
        else:
            sub.add_function_arguments(command, as_group=False)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Whatever goes wrong is one line and an exit status, as `errors.explain` says; --debug raises it."""
    calm_libraries()
    arguments = [_underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    running: dict[str, Any] = {"command": "ardistill"}
    with errors.one_line(lambda: running["command"], lambda: _goes_on(running), debug="--debug" in arguments):
        _run(arguments, running)


def _underscored(word: str) -> str:
    """--training.max-steps=1 is --training.max_steps=1; a value is left as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _run(arguments: list[str], running: dict[str, Any]) -> None:
    """Parse a command line, run its command and print what it found.

    Args:
        arguments: Words of the command line.
        running: Filled with the command's name and its options, for whatever may have to be said of it.

    Raises:
        SystemExit: With status 2 where the command line is wrong, 1 where a recording is not whole.
    """
    parser = build_parser()
    before = list(itertools.takewhile(lambda word: word not in COMMANDS, arguments))
    for option, value in itertools.pairwise(before):
        if option == "--config":
            try:
                _check_recipe(value, parser)
            except ValueError as error:
                parser.error(str(error))
    parsed = parser.parse_args(arguments)
    name = parsed.command
    action = parsed[name].action if isinstance(COMMANDS[name], dict) else ""
    running["command"] = " ".join(["ardistill", name, action]).strip()
    chosen, command = parser.instantiate(parsed)[name], COMMANDS[name]  # configurations look at their values
    if isinstance(command, dict):
        command, chosen = command[action], chosen[action]
    options = dict(vars(chosen))
    options.pop("config", None)
    as_json, _ = options.pop("json"), options.pop("debug")
    _check_values(options)
    running |= options
    with contextlib.redirect_stdout(sys.stderr):  # libraries print, too; stdout is for the result
        result = command(**options)
    text = result.pop("text")
    if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks
        print(json.dumps(result) if as_json else text, flush=True)
    if result.get("whole") is False:
        sys.exit(1)


def _check_values(options: dict[str, Any]) -> None:
    """Refuse what no option takes, whatever its command.

    Raises:
        ValueError: A number is infinite, none, or an integer that is larger than torch and NumPy take; or a name or
            path is empty, which would stand for the current folder.
    """
    for name, value in options.items():
        for number in value if isinstance(value, list) else [value]:
            if number == "" and name not in ("prompt", "negative_prompt"):
                raise ValueError(f"expected a value for --{name}, got an empty one; name one, or leave the option out")
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"expected a finite number for --{name}, got {number}")
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError(f"expected a number of 64 bits for --{name}, got {number}; take a smaller one")


def _goes_on(running: dict[str, Any]) -> str:
    """How to go on after an interrupt."""
    checkpoints = Path(str(running.get("out")), "checkpoints")
    if running["command"] in ("ardistill distill", "ardistill finetune"):
        names = (
            sorted(x.name for x in checkpoints.glob("step-*") if x.name[5:].isdigit()) if checkpoints.is_dir() else []
        )
        where = f"from {checkpoints / names[-1]}" if names else "from the start, there is no checkpoint yet"
        return f"the same command again goes on {where}"
    if running["command"] == "ardistill record":
        return "the same command again makes the shards that are missing"
    return "what is there is whole, run the same command again"
