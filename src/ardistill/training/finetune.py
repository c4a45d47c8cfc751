"""Train a distilled student further against a discriminator on real data (R+D)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.devices import Device, resolve_device, resolve_weights
from ardistill.student import Student
from ardistill.teacher import Teacher, load_recorded_teacher
from ardistill.training.adversary import Adversary
from ardistill.training.distill import Validate, distill
from ardistill.training.launch import settled
from ardistill.training.run_folder import check_run_folder, stored_weights
from ardistill.trajectories import TrajectoryDataset

Validation = Callable[[Teacher, TrajectoryDataset, Path], Validate]
"""Makes the ``validate`` of `distill` from the loaded teacher, the trajectories and a folder for its pictures."""


def finetune(
    student: str | Path,
    trajectories: str | Path,
    real: str | Path,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    device: Device = None,
    weights: str = "auto",
    training: TrainingConfig = TrainingConfig(inputs="student", learning_rate=1e-5, gate_rate=1.0),  # noqa: B008
    adversarial: AdversarialConfig = AdversarialConfig(),  # noqa: B008
    validation: Validation | None = None,
    progress: bool = True,
) -> Student:
    """Train a distilled student further on its trajectories and against a discriminator on real data (R+D).

    The same call again resumes, as in `distill`.

    Args:
        student: Run folder of ``distill`` or ``finetune``, or one of its checkpoints.
        trajectories: Folder or URL that ``record`` wrote; the regression on them continues beside the discriminator.
        real: File that ``encode`` wrote.
        out: Run folder, as in `distill`.
        teacher: Where the teacher is now; the name that the trajectories were recorded under if not given.
        device: Device of the training; the best available one if not given.
        weights: Type of the weights of the discriminator's teacher, as for ``Teacher.from_pretrained``; ``auto`` is
            that of the run in the folder where it is resumed.
        training: Options of the training. The discriminator judges the last step of the pass: drawn from noise with
            inputs ``student``, from the teacher's second to last state with inputs ``teacher``.
        adversarial: Options of the discriminator and its training.
        validation: Makes the ``validate`` of `distill`, such as ``ardistill.evaluation.validation_grid``, whose
            pictures go to the run's subfolder ``samples``. Not used for a teacher that draws no images.
        progress: Show a progress bar.

    Returns:
        The student with its EMA weights, in evaluation mode.

    Raises:
        ValueError: The folder cannot hold the run, or student, trajectories, real data and teacher do not fit together;
            further as in `distill`.
        TrainingDivergedError: Loss or gradients are NaN or infinite.
    """
    check_run_folder(out)
    where = resolve_device(device)
    resolve_weights(weights, where)
    loaded = Student.from_pretrained(student, "cpu" if training.shard else where)
    if loaded.config.expert or len(loaded.parts) > 1:
        raise ValueError(
            f"expected a student that draws the whole path by one transformer, got {student}, of two; train its two "
            "students longer by distill"
        )
    data = TrajectoryDataset(trajectories, loaded.config.knots, loaded.config.fingerprint or None)
    if weights == "auto":
        weights = stored_weights(Path(out), "discriminator") or weights
    found = load_recorded_teacher(data.manifest, teacher, where, weights)
    training = settled(training, Path(out), where)
    precision = training.mixed_precision
    adversary = Adversary.of_real(found, real, adversarial, training.seed, precision, data.knots)
    validate = None
    if validation is not None and found.draws_images:
        validate = validation(found, data, Path(out) / "samples")
    return distill(
        loaded.requires_grad_(True),
        data,
        out,
        training,
        start=str(student),
        adversary=adversary,
        validate=validate,
        progress=progress,
    )
