"""The whole way on the embedded teacher: record, distil three students at as many evaluations, compare, report."""

from __future__ import annotations

import time
from pathlib import Path

from ardistill.config import QuickstartConfig, TrainingConfig
from ardistill.evaluation import (
    Comparison,
    Judge,
    Sampler,
    compare,
    distance_to_solver,
    exposure_bias,
    exposure_bias_plot,
)
from ardistill.publishing import export
from ardistill.student import Student
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record
from ardistill.zoo.fashion.data import CLASS_NAMES

ARMS = {"kd": (1, False, 4), "step_distillation": (4, False, 1), "ard": (4, True, 1)}
"""Arm -> steps, whether it sees its history, batch size relative to the 4-step arms: as many evaluations."""


def quickstart(config: QuickstartConfig | None = None) -> Comparison:
    """Record, distil, compare, report and export; the same call again resumes.

    Writes ``trajectories/``, a run folder per arm, ``metrics.json``, ``report.html``, ``samples.png``,
    ``exposure_bias.png`` and the exported ARD student in ``student/``.
    """
    config = config or QuickstartConfig()
    began, out = time.time(), Path(config.out)
    teacher = Teacher.from_pretrained("zoo/fashion", guidance_scale=config.guidance_scale)
    sizes = {"train": (config.num_trajectories, config.seed), "eval": (config.num_eval, config.seed + 1000)}
    for name, (count, seed) in sizes.items():
        record(teacher, out / "trajectories" / name, count, num_steps=(1, 4, 8), seed=seed)
    held_out = TrajectoryDataset(out / "trajectories" / "eval", config.knots)
    states, denoised, condition = held_out.stacked()
    noise, first = states[:, 0], slice(200)
    first_condition = held_out.condition(first)

    students: dict[str, Student] = {}
    for arm, (num_steps, has_history, factor) in ARMS.items():
        knots = config.knots if num_steps > 1 else 1
        data = TrajectoryDataset(out / "trajectories" / "train", knots, teacher.fingerprint())
        history_layers = config.history_layers if has_history else 0
        student = Student.from_teacher(teacher, data.student_config(history_layers))
        start = distance_to_solver(student, teacher, noise[first], first_condition)
        print(f"{arm}: {num_steps} steps, history in {history_layers} layers; untrained it draws", end=" ")
        print(f"{start:.1%} from the teacher's {num_steps}-step solver", flush=True)
        training = TrainingConfig(
            max_steps=config.max_steps,
            batch_size=config.batch_size * factor,
            learning_rate=config.learning_rate,
            lr_scheduler="cosine",
            lr_warmup_steps=min(10, config.max_steps),
            ema_decay=0.98,
            seed=config.seed,
            checkpoint_every=100,
        )
        students[arm] = distill(student, data, out / arm, training)

    arms = {
        "teacher": Sampler.of_teacher(teacher, held_out.manifest.solver_steps),
        "solver": Sampler.of_teacher(teacher, 4),
        "solver_1": Sampler.of_teacher(teacher, 1),
    } | {arm: Sampler.of_student(student) for arm, student in students.items()}
    baseline = "step_distillation"
    found = compare(
        teacher, teacher.decode(states[:, -1]), arms, noise, condition, Judge.zoo("fashion"), baseline=baseline
    )
    curves = {
        arm: exposure_bias(
            students[arm], teacher, states[first], denoised[first], first_condition, held_out.manifest.knots
        )
        for arm in ("step_distillation", "ard")
    }
    exposure_bias_plot(curves, out / "exposure_bias.png")
    found.notes.append(
        f"Training: {config.max_steps} steps of {config.batch_size} trajectories (the 1-step arm: "
        f"{ARMS['kd'][2] * config.batch_size}), one seed; guidance {config.guidance_scale}."
    )
    pictures = {"Error per step": out / "exposure_bias.png"}
    shown = ("teacher", "solver", "kd", "step_distillation", "ard")
    found.write(out, "ardistill quickstart", columns=CLASS_NAMES, pictures=pictures, shown=shown)
    if not (out / "student").exists():
        export(students["ard"], teacher, out / "student", figures=found.markdown(), picture=out / "samples.png")
    print(f"{time.time() - began:.0f} s")
    return found
