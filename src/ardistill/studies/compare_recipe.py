"""Compare the arms of a recipe: the command ``compare --recipe`` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ardistill.config import JudgeConfig
from ardistill.devices import Device
from ardistill.evaluation import Comparison, compare_students
from ardistill.studies.study import Study
from ardistill.teacher import Teacher


def compare_recipe(
    recipe: str | Path,
    out: str | Path | None = None,
    arms: Sequence[str] | None = None,
    judging: JudgeConfig = JudgeConfig(),  # noqa: B008
    *,
    teacher: str | Path | Teacher | None = None,
    device: Device = None,
    mixed_precision: str = "auto",
) -> Comparison:
    """Record and train the arms of a recipe as far as they are not there yet, and compare them.

    Args:
        recipe: YAML file, see `Recipe`.
        out: Folder of trajectories and runs; the report goes into its subfolder ``comparison``. The recipe's if not
            given.
        arms: Arms to compare, the first one as the baseline; all if not given.
        judging: Feature network, reference and scores of text.
        teacher: The teacher, or where it is now, for the comparison; the recipe's if not given.
        device: Where everything runs; the best device if not given.
        mixed_precision: What teacher and students compute in for the comparison, as for `compare_students`; the
            recipe says what is recorded and trained in.

    Returns:
        All metrics; ``folder`` is where they were written.

    Raises:
        ValueError: The recipe or an arm is invalid, or see `compare_students`.
    """
    study = Study(recipe, out, device)
    names = list(study.recipe.lineages(arms or study.recipe.arms))  # checks all arms before the first is trained
    for name in names:
        study.held_out(study.student(name).config.knots)
    folders = [study.run_folder(name) for name in names]
    return compare_students(
        folders,
        study.held_out_folder,
        study.out / "comparison",
        judging,
        teacher=teacher,
        device=device,
        mixed_precision=mixed_precision,
    )
