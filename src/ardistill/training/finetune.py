"""Train a distilled student further, for the distribution of its images: by a discriminator, or by matching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ardistill.config import METHODS, AdversarialConfig, MatchingConfig, TrainingConfig
from ardistill.devices import Device, resolve_device, resolve_weights
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher, load_recorded_teacher
from ardistill.training.adversary import Adversary
from ardistill.training.critic import Critic
from ardistill.training.distill import Validate, distill
from ardistill.training.launch import settled
from ardistill.training.matching import FakeScore, Matching
from ardistill.training.run_folder import check_run_folder, stored_weights
from ardistill.trajectories import TrajectoryDataset

Validation = Callable[[Teacher, TrajectoryDataset, Path], Validate]
"""Makes the ``validate`` of `distill` from the loaded teacher, the trajectories and a folder for its pictures."""


def finetune(
    student: str | Path,
    trajectories: str | Path,
    out: str | Path,
    *,
    method: str = "adversarial",
    real: str | Path | None = None,
    teacher: str | Path | None = None,
    device: Device = None,
    weights: str = "auto",
    training: TrainingConfig = TrainingConfig(inputs="student", learning_rate=1e-5, gate_rate=1.0),  # noqa: B008
    adversarial: AdversarialConfig = AdversarialConfig(),  # noqa: B008
    matching: MatchingConfig = MatchingConfig(),  # noqa: B008
    validation: Validation | None = None,
    progress: bool = True,
) -> Student:
    """Train a distilled student further: on its trajectories, and for the distribution of its images.

    The same call again resumes, as in `distill`.

    Args:
        student: Run folder of ``distill`` or ``finetune``, or one of its checkpoints.
        trajectories: Folder or URL that ``record`` wrote; the regression on them continues.
        out: Run folder, as in `distill`.
        method: ``adversarial``, against a discriminator on real images (R+D), or ``dmd``, distribution matching, which
            needs none.
        real: File that ``encode`` wrote, for ``adversarial``.
        teacher: Where the teacher is now; the name that the trajectories were recorded under if not given.
        device: Device of the training; the best available one if not given.
        weights: Type of the weights of the teacher that judges, as for ``Teacher.from_pretrained``; ``auto`` is that of
            the run in the folder where it is resumed.
        training: Options of the training. What is judged is the last step of the pass: drawn from noise with inputs
            ``student``, from the teacher's second to last state with inputs ``teacher``.
        adversarial: Options of the discriminator and its training.
        matching: Options of the fake score and its training.
        validation: Makes the ``validate`` of `distill`, such as ``ardistill.evaluation.validation_grid``, whose
            pictures go to the run's subfolder ``samples``. Not used for a teacher that draws no images.
        progress: Show a progress bar.

    Returns:
        The student with its EMA weights, in evaluation mode.

    Raises:
        ValueError: The method is unknown, ``real`` is missing or too much, the folder cannot hold the run, or student,
            trajectories, real data and teacher do not fit together; further as in `distill`.
        TrainingDivergedError: Loss or gradients are NaN or infinite.
    """
    _check_method(method, real)
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
    network = Adversary.NETWORK if method == "adversarial" else Matching.NETWORK
    if weights == "auto":
        weights = stored_weights(Path(out), network) or weights
    found = load_recorded_teacher(data.manifest, teacher, where, weights)
    training = settled(training, Path(out), where)
    critic = make_critic(found, loaded.config, training, adversarial if method == "adversarial" else matching, real)
    validate = None
    if validation is not None and found.draws_images:
        validate = validation(found, data, Path(out) / "samples")
    return distill(
        loaded.requires_grad_(True),
        data,
        out,
        training,
        start=str(student),
        critic=critic,
        validate=validate,
        progress=progress,
    )


def _check_method(method: str, real: str | Path | None) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if method == "adversarial" and real is None:
        raise ValueError(
            "real is missing, the file of real images that `ardistill encode` writes; method dmd needs none"
        )
    if method != "adversarial" and real is not None:
        raise ValueError(f"method {method} takes no real images; leave real out")


def make_critic(
    teacher: Teacher,
    student: StudentConfig,
    training: TrainingConfig,
    options: AdversarialConfig | MatchingConfig,
    real: str | Path | None,
) -> Critic:
    """What judges a student's images, before it is trained.

    Args:
        teacher: At the guidance of the trajectories.
        student: The student's configuration.
        training: Its seed and ``mixed_precision`` are used.
        options: Of a discriminator or of distribution matching.
        real: File that ``encode`` wrote, for a discriminator.

    Raises:
        ValueError: The file cannot be read or does not fit the teacher; or guidance is an input of a student whose
            distribution is to be matched.
    """
    if isinstance(options, AdversarialConfig):
        facts = (training.seed, training.mixed_precision, student.knots)
        return Adversary.of_real(teacher, str(real), options, *facts)
    if student.takes_guidance:
        low, high = student.guidance_range
        raise ValueError(
            f"expected a student of one guidance scale, got one of {low:g} to {high:g}, which the fake score would not "
            "know; train it by method adversarial"
        )
    return Matching(FakeScore(teacher, options, training.mixed_precision), options)
