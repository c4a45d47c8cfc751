"""A study: trajectories and students of one teacher as a recipe describes them, recorded and trained when needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ardistill.config import METHODS, TrainingConfig
from ardistill.core.knots import Knots
from ardistill.devices import Device, resolve_device
from ardistill.files import read_json
from ardistill.student import Student
from ardistill.studies.recipe import CONFIGS, RECORD, STUDENT, Recipe
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.training.critic import Critic
from ardistill.training.finetune import make_critic
from ardistill.trajectories import TrajectoryDataset, load_prompts, record, steps_or_knots

Steps = int | Sequence[int] | Knots
"""Steps of a student, uniform; or indices of the solver's states between which they run; or the knots themselves."""
Validate = Callable[[Student, int], np.ndarray | None]
"""The ``validate`` of ``distill``: (student, steps done) -> a picture."""


class Study:
    """Trajectories and students of a recipe. Those that exist are read; an interrupted training is resumed.

    Args:
        recipe: YAML file, see `Recipe`.
        out: Folder of trajectories and runs, one per name; the recipe's if not given.
        device: Where the teacher is and arms are trained; the best device if not given.

    Attributes:
        recipe: The checked recipe.
        out: Folder of trajectories and runs.
        device: Where the teacher is and arms are trained.

    Raises:
        ValueError: The recipe is invalid, see `Recipe`, or the device does not exist.
    """

    def __init__(self, recipe: str | Path, out: str | Path | None = None, device: Device = None) -> None:
        self.device = resolve_device(device)
        self.recipe = Recipe(recipe)
        self.out = Path(out or self.recipe.out)

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, at the recipe's guidance scale."""
        facts = self.recipe.record
        scale = float(facts["guidance_scale"])
        options: dict[str, Any] = {"guidance_scale": scale, "device": self.device}
        return Teacher.from_pretrained(facts["teacher"], **options, weights="float32")  # the copy that arms train

    def run_folder(self, name: str) -> Path:
        """Run folder of an arm."""
        return self.out / "arms" / name

    @property
    def held_out_folder(self) -> Path:
        """Folder of the held-out trajectories."""
        return self.out / "trajectories" / "held_out"

    def data(self, steps: Steps, num_trajectories: int | None = None) -> TrajectoryDataset:
        """Training trajectories; missing ones are recorded.

        Args:
            steps: Steps or knots of the student.
            num_trajectories: Number of trajectories; the recipe's if not given.
        """
        count = num_trajectories or self.recipe.record["num_trajectories"]
        return self._recorded(self.out / "trajectories" / f"train-{count}", steps, {"num_trajectories": count})

    def held_out(self, steps: Steps) -> TrajectoryDataset:
        """Held-out trajectories, from another seed; missing ones are recorded.

        Args:
            steps: Steps or knots of the student.
        """
        return self._recorded(self.held_out_folder, steps, self.recipe.held_out)

    def _recorded(self, folder: Path, steps: Steps, changes: dict[str, Any]) -> TrajectoryDataset:
        """Trajectories with the recipe's options, some of them changed."""
        options = {name: value for name, value in (self.recipe.record | changes).items() if name in RECORD}
        if "prompts" in options:
            options["prompts"] = load_prompts(options["prompts"])
        record(self.teacher.to(self.device), folder, **options)
        return TrajectoryDataset(folder, steps, self.teacher.fingerprint())

    def student(self, name: str, validate: Validate | None = None) -> Student:
        """The trained student of an arm. Training resumes at the last checkpoint; a finished run is read.

        Args:
            name: The arm.
            validate: Called at every checkpoint of this arm, as ``distill`` does; not for arms that it continues.

        Raises:
            ValueError: The arm is invalid, or its run folder holds a run with other options.
        """
        options = self.recipe.options(name)
        return (
            self._tuned(name, options, validate) if "finetune" in options else self._distilled(name, options, validate)
        )

    def _distilled(self, name: str, options: dict[str, Any], validate: Validate | None) -> Student:
        """The student of an arm that starts from the teacher."""
        num_steps = options.get("num_steps", 4)
        data = self.data(steps_or_knots(num_steps, options.get("knots")), options.get("num_trajectories"))
        config = data.student_config(**{key: options[key] for key in (STUDENT | {"conditioning"}) & options.keys()})
        training = dict(options["training"])
        if evaluations := options.get("evaluations_per_step"):
            training["batch_size"] = evaluations // num_steps
        student = Student.from_teacher(self.teacher, config)
        return self._trained(name, student, data, training, validate)

    def _tuned(self, name: str, options: dict[str, Any], validate: Validate | None) -> Student:
        """The student of an arm that continues another one, with a critic."""
        student = self.student(options["finetune"]).requires_grad_(True)
        origin = self.recipe.options(self.recipe.lineages([name])[name][0])
        data = self.data(student.config.knots, origin.get("num_trajectories"))
        training = options["training"]
        section = METHODS[options.get("method", "adversarial")]
        judged = CONFIGS[section](**options.get(section, {}))
        facts = (student.config, TrainingConfig(**training), judged, options.get("real"))
        return self._trained(name, student, data, training, validate, make_critic(self.teacher, *facts))

    def _trained(
        self,
        name: str,
        student: Student,
        data: TrajectoryDataset,
        training: dict[str, Any],
        validate: Validate | None,
        critic: Critic | None = None,
    ) -> Student:
        """The student after its training, in the arm's run folder."""
        folder, config = self.run_folder(name), TrainingConfig(**training)
        _check_steps(folder, config)
        return distill(student, data, folder, config, critic=critic, validate=validate)


def _check_steps(folder: Path, training: TrainingConfig) -> None:
    """Raise a ValueError if a run folder holds a run of another number of steps.

    ``distill`` would train it further; arms that started from it would then not be continued from its end.
    """
    path = folder / "config.json"
    found = read_json(path).get("training", {}).get("max_steps", training.max_steps) if path.is_file() else None
    if found not in (None, training.max_steps):
        raise ValueError(
            f"{folder} holds another run (training.max_steps is {found} there, {training.max_steps} asked for); give "
            "the arm another name, or repeat its own settings"
        )
