"""Students of one teacher on equal terms, as a recipe with arms says: recorded, distilled, each resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.discriminator import Adversary
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.trajectories import TrajectoryDataset, record

SECTIONS = {"out", "record", "held_out", "distill", "finetune", "arms"}
_STUDENT = {"history_layers", "mask", "target", "output", "gated"}
_ARM = _STUDENT | {"num_steps", "num_trajectories", "conditioning", "evaluations_per_step", "training"}
_FINETUNE = {"finetune", "real", "training", "adversarial"}


class Study:
    """A recipe whose section ``arms`` names students; what an arm does not say is in ``distill`` or ``finetune``.

    ``evaluations_per_step`` in place of a batch size makes an optimiser step of every arm cost the same, whatever its
    number of steps. An arm with ``finetune: OTHER`` goes on from another one, against a discriminator.

    Args:
        recipe: YAML file.
        out: Folder of trajectories and runs, one a name; the recipe's own if not given.

    Raises:
        ValueError: The recipe has a section or an arm an option that is not known, or lacks one.
    """

    def __init__(self, recipe: str | Path, out: str | Path | None = None) -> None:
        found = yaml.safe_load(Path(recipe).read_text())
        if not isinstance(found, dict) or not {"record", "distill", "arms"} <= set(found) <= SECTIONS:
            raise ValueError(
                f"{recipe}: expected the sections record, held_out, distill, finetune and arms, "
                f"got {', '.join(found) if isinstance(found, dict) else type(found).__name__}"
            )
        self.facts: dict[str, Any] = {"held_out": {}, "finetune": {}, "out": "runs/study", **found}
        self.out = Path(out or self.facts["out"])
        for name, arm in self.facts["arms"].items():
            self.options(name)
            if "finetune" in (arm or {}):
                self.options(arm["finetune"])

    def options(self, name: str) -> dict[str, Any]:
        """All options of an arm, those of its section included.

        Raises:
            ValueError: There is no such arm, or it has an option that is not known.
        """
        arms = self.facts["arms"]
        if name not in arms:
            raise ValueError(f"no arm {name!r}; the recipe has {', '.join(arms)}")
        arm = arms[name] or {}
        section = "finetune" if "finetune" in arm else "distill"
        base = self.facts[section]
        nested = {key: base.get(key, {}) | arm.get(key, {}) for key in ("training", "adversarial") if key in base | arm}
        options = base | arm | nested
        known = _FINETUNE if section == "finetune" else _ARM
        configs = {"training": TrainingConfig, "adversarial": AdversarialConfig}
        unknown = [key for key in options if key not in known]
        for key, config in configs.items():
            names = {field.name for field in fields(config)}
            unknown += [f"{key}.{x}" for x in options.get(key, {}) if x not in names]
        if unknown:
            raise ValueError(f"arm {name}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return options

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher.from_pretrained(self.facts["record"]["teacher"], guidance_scale=self.guidance_scale)

    @property
    def guidance_scale(self) -> float:
        return float(self.facts["record"]["guidance_scale"])

    def _recorded(self, name: str, num_steps: int, **options: Any) -> TrajectoryDataset:
        options = {k: v for k, v in (self.facts["record"] | options).items() if k not in ("teacher", "guidance_scale")}
        record(self.teacher, self.out / "trajectories" / name, **options)
        return TrajectoryDataset(self.out / "trajectories" / name, num_steps, self.teacher.fingerprint())

    def data(self, num_steps: int, num_trajectories: int | None = None) -> TrajectoryDataset:
        """Trajectories to train on, recorded if they are not there: as many as the recipe says, or an arm."""
        count = num_trajectories or self.facts["record"]["num_trajectories"]
        return self._recorded(f"train-{count}", num_steps, num_trajectories=count)

    def held_out(self, num_steps: int) -> TrajectoryDataset:
        """Trajectories from other noise, to measure on."""
        return self._recorded("held_out", num_steps, **{"seed": 1000, **self.facts["held_out"]})

    def student(self, name: str, validate: Callable[[Student, int], np.ndarray | None] | None = None) -> Student:
        """The trained student of an arm: trained, gone on with, or read, as far as it had come.

        Args:
            name: Of the arm.
            validate: As in ``distill``.
        """
        options, folder = self.options(name), self.out / name
        if (folder / "student" / "student.json").is_file():
            return Student.from_pretrained(folder)
        training = dict(options["training"])
        if start := options.get("finetune"):
            student = self.student(start).requires_grad_(True)
            parent = self.options(start)
            data = self.data(student.num_steps, parent.get("num_trajectories"))
            against = AdversarialConfig(**options.get("adversarial", {}))
            adversary = Adversary.of_real(self.teacher, options["real"], against, training.get("seed", 0))
            return distill(student, data, folder, TrainingConfig(**training), adversary=adversary, validate=validate)
        num_steps = options.get("num_steps", 4)
        data = self.data(num_steps, options.get("num_trajectories"))
        config = StudentConfig.for_data(data, **{key: options[key] for key in _STUDENT & options.keys()})
        if options.get("conditioning") == "uniform":
            config = config.conditioned_uniformly(self.teacher.scheduler.config.num_train_timesteps)
        if evaluations := options.get("evaluations_per_step"):
            training["batch_size"] = evaluations // num_steps
        student = Student.from_teacher(self.teacher, config)
        return distill(student, data, folder, TrainingConfig(**training), validate=validate)
