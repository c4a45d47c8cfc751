"""Students of one teacher on equal terms, as a recipe with arms says: recorded, distilled, each resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.core.knots import Knots
from ardistill.devices import Device, resolve_device
from ardistill.files import read_json
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher
from ardistill.training import distill
from ardistill.training.adversary import Adversary
from ardistill.trajectories import TrajectoryDataset, load_prompts, record

Steps = int | Sequence[int] | Knots
_RECORD = {"num_trajectories", "prompts", "solver_steps", "num_steps", "seed", "shard_size", "mixed_precision"}
_STUDENT = {"history_layers", "mask", "target", "output", "gated"}
SECTIONS = {
    "out": set(),
    "record": _RECORD | {"teacher", "guidance_scale"},
    "held_out": _RECORD,
    "distill": _STUDENT
    | {"num_steps", "knots", "num_trajectories", "conditioning", "evaluations_per_step", "training"},
    "finetune": {"finetune", "real", "training", "adversarial"},
    "arms": set(),
}
"""Sections of a recipe and the options that stand there or in an arm of that kind."""
_CONFIGS = {"training": TrainingConfig, "adversarial": AdversarialConfig}


class Study:
    """A recipe whose section ``arms`` names students; what an arm does not say is in ``distill`` or ``finetune``.

    ``evaluations_per_step`` in place of a batch size makes an optimiser step of every arm take as many evaluations,
    whatever its number of steps. An arm with ``finetune: OTHER`` goes on from another one, against a discriminator.

    Args:
        recipe: YAML file.
        out: Folder of trajectories and runs, one a name; the recipe's own if not given.
        device: Where the teacher is and arms are trained; the best device there is if not given.

    Raises:
        ValueError: The recipe has a section, or a section or an arm an option, that is not known, lacks one, or has a
            value that cannot be.
    """

    def __init__(self, recipe: str | Path, out: str | Path | None = None, device: Device = None) -> None:
        try:
            found = yaml.safe_load(Path(recipe).read_text())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"{recipe} cannot be read as a recipe: {error}") from error
        if not isinstance(found, dict) or not {"record", "distill", "arms"} <= set(found) <= set(SECTIONS):
            raise ValueError(
                f"{recipe}: expected the sections record, held_out, distill, finetune and arms, "
                f"got {', '.join(map(str, found)) if isinstance(found, dict) else type(found).__name__}"
            )
        for section in set(found) - {"out"}:
            _check_mapping(f"{recipe}, section {section}", found[section])
        if not found["arms"]:
            raise ValueError(f"{recipe}, section arms: expected one arm or more, got none")
        self.facts: dict[str, Any] = {"held_out": {}, "finetune": {}, "out": "runs/study", **found}
        self.out, self.device = Path(out or str(self.facts["out"])), resolve_device(device)
        for section in ("record", "held_out"):
            _check_known(f"section {section}", self.facts[section], SECTIONS[section])
        missing = {"teacher", "guidance_scale", "num_trajectories"} - set(self.facts["record"])
        if missing:
            raise ValueError(f"{recipe}, section record: {', '.join(sorted(missing))} missing")
        for section in ("record", "held_out"):
            _check_counts(f"{recipe}, section {section}", self.facts[section])
        scale = self.facts["record"]["guidance_scale"]
        if type(scale) not in (int, float) or not scale >= 1:
            raise ValueError(f"{recipe}, section record: expected a guidance_scale of 1 (none) or more, got {scale!r}")
        seeds = self.facts["record"].get("seed", 0), self.facts["held_out"].setdefault("seed", 1000)
        if seeds[0] == seeds[1]:
            raise ValueError(f"{recipe}: held_out needs another seed than record's, {seeds[0]}")
        self.lineages(self.facts["arms"])

    def lineages(self, arms: Sequence[str]) -> dict[str, list[str]]:
        """Arm -> the arms it goes on from, itself last. All are looked at, so that a mistake shows before any work.

        Raises:
            ValueError: An arm is not there, has an option or a value that cannot be, or goes on from itself.
        """
        found = {}
        for name in arms:
            lineage = [name]
            while start := self.options(lineage[0]).get("finetune"):
                if start in lineage:
                    raise ValueError(f"arm {name} goes on from itself: {' <- '.join([start, *lineage])}")
                lineage.insert(0, start)
            found[name] = lineage
        return found

    def options(self, name: str) -> dict[str, Any]:
        """All options of an arm, those of its section included.

        Raises:
            ValueError: There is no such arm, or it has an option or a value that cannot be.
        """
        arms = self.facts["arms"]
        if name not in arms:
            raise ValueError(f"no arm {name!r}; the recipe has {', '.join(arms)}")
        arm = arms[name] or {}
        _check_mapping(f"arm {name}", arm)
        section = "finetune" if "finetune" in arm else "distill"
        base = self.facts[section]
        for given in (base, arm):
            for key in _CONFIGS & given.keys():
                _check_mapping(f"arm {name}, {key}", given[key])
        nested = {key: base.get(key, {}) | arm.get(key, {}) for key in _CONFIGS if key in base | arm}
        options = base | arm | nested
        _check_known(f"arm {name}", options, SECTIONS[section])
        for key, config in _CONFIGS.items():
            given = options.get(key, {})
            _check_known(f"arm {name}, {key}", given, {field.name for field in fields(config)})
            if words := [x for x, value in given.items() if isinstance(value, str) and value[:1].isdigit()]:
                raise ValueError(f"arm {name}: {key}.{words[0]} is a word in YAML, {given[words[0]]!r}; write 5.0e-4")
            try:
                config(**given)
            except (TypeError, ValueError) as error:
                raise ValueError(f"arm {name}, {key}: {error}") from error
        if options.get("conditioning", "recorded") not in ("recorded", "uniform"):
            raise ValueError(f"arm {name}: conditioning is recorded or uniform, got {options['conditioning']!r}")
        _check_counts(f"arm {name}", options)
        if section == "finetune" and not isinstance(options["finetune"], str):
            raise ValueError(f"arm {name}: finetune is the name of another arm, got {options['finetune']!r}")
        knots = options.get("knots", [0, 0])
        if not isinstance(knots, list) or [x for x in knots if type(x) is not int]:
            raise ValueError(f"arm {name}: expected knots as a list of the solver's states, got {knots!r}")
        evaluations, num_steps = options.get("evaluations_per_step"), options.get("num_steps", 4)
        if "knots" in options and len(options["knots"]) != num_steps + 1:
            raise ValueError(
                f"arm {name}: expected {num_steps + 1} knots for {num_steps} steps, got {options['knots']}"
            )
        if evaluations is not None and (evaluations < 1 or evaluations % num_steps):
            raise ValueError(f"arm {name}: {evaluations} evaluations_per_step are no multiple of its {num_steps} steps")
        if evaluations is not None and "batch_size" in options.get("training", {}):
            raise ValueError(f"arm {name}: evaluations_per_step says the batch_size; leave one of them out")
        if section == "finetune" and "real" not in options:
            raise ValueError(f"arm {name}: real is missing, the file of real images that `ardistill encode` writes")
        if section == "distill":
            levels = (1.0,) * (num_steps + 1)  # whatever: it is the other options that are looked at
            try:
                given = {key: options[key] for key in _STUDENT & options.keys()}
                StudentConfig(Knots("epsilon", levels[1:], levels, levels), **given)
            except (TypeError, ValueError) as error:
                raise ValueError(f"arm {name}: {error}") from error
        return options

    @cached_property
    def teacher(self) -> Teacher:
        facts = self.facts["record"]
        scale = float(facts["guidance_scale"])
        return Teacher.from_pretrained(facts["teacher"], guidance_scale=scale, device=self.device)

    def _recorded(self, name: str, steps: Steps, **options: Any) -> TrajectoryDataset:
        options = {k: v for k, v in (self.facts["record"] | options).items() if k in _RECORD}
        if "prompts" in options:
            options["prompts"] = load_prompts(options["prompts"])
        record(self.teacher.to(self.device), self.out / "trajectories" / name, **options)
        return TrajectoryDataset(self.out / "trajectories" / name, steps, self.teacher.fingerprint())

    def data(self, steps: Steps, num_trajectories: int | None = None) -> TrajectoryDataset:
        """Trajectories to train on, recorded if they are not there: as many as the recipe says, or an arm.

        Args:
            steps: As ``num_steps`` of ``TrajectoryDataset``.
            num_trajectories: The recipe's if not given.
        """
        count = num_trajectories or self.facts["record"]["num_trajectories"]
        return self._recorded(f"train-{count}", steps, num_trajectories=count)

    def held_out(self, steps: Steps) -> TrajectoryDataset:
        """Trajectories from other noise, to measure on; ``steps`` as above."""
        return self._recorded("held_out", steps, **self.facts["held_out"])

    def student(self, name: str, validate: Callable[[Student, int], np.ndarray | None] | None = None) -> Student:
        """The trained student of an arm; training goes on from as far as it had come, and a finished run is read.

        Args:
            name: Of the arm.
            validate: As in ``distill``; not called for the arms that this one goes on from.

        Raises:
            ValueError: The folder of the run holds one with other options.
        """
        options, folder = self.options(name), self.out / "arms" / name
        training = dict(options["training"])
        if start := options.get("finetune"):
            student = self.student(start).requires_grad_(True)
            origin = self.options(self.lineages([name])[name][0])
            data = self.data(student.config.knots, origin.get("num_trajectories"))
            against = AdversarialConfig(**options.get("adversarial", {}))
            adversary = Adversary.of_real(self.teacher, options["real"], against, training.get("seed", 0))
            _check_steps(folder, TrainingConfig(**training))
            return distill(student, data, folder, TrainingConfig(**training), adversary=adversary, validate=validate)
        num_steps = options.get("num_steps", 4)
        data = self.data(options.get("knots", num_steps), options.get("num_trajectories"))
        config = data.student_config(**{key: options[key] for key in (_STUDENT | {"conditioning"}) & options.keys()})
        if evaluations := options.get("evaluations_per_step"):
            training["batch_size"] = evaluations // num_steps
        student = Student.from_teacher(self.teacher, config)
        _check_steps(folder, TrainingConfig(**training))
        return distill(student, data, folder, TrainingConfig(**training), validate=validate)


def _check_steps(folder: Path, training: TrainingConfig) -> None:
    """Refuse to go on with a run of fewer steps, as ``distill`` would: arms that began at its end would not follow."""
    path = folder / "config.json"
    found = read_json(path).get("training", {}).get("max_steps", training.max_steps) if path.is_file() else None
    if found not in (None, training.max_steps):
        raise ValueError(
            f"{folder} holds another run (training.max_steps is {found} there, {training.max_steps} asked for); give "
            "the arm another name, or repeat its own settings"
        )


def _check_known(where: str, options: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(map(str, options.keys() - known)):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _check_mapping(where: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected options with their values, got {value!r}")


def _check_counts(where: str, options: dict[str, Any]) -> None:
    for name in ("num_steps", "num_trajectories", "solver_steps", "shard_size", "evaluations_per_step"):
        values = options.get(name, 1)
        several = values if name == "num_steps" and isinstance(values, list) and values else [values]
        if wrong := [x for x in several if type(x) is not int or x < 1]:
            raise ValueError(f"{where}: expected {name} of 1 or more, got {wrong[0]!r}")
