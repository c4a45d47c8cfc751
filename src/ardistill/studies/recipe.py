"""Recipes with arms: YAML files that say what is recorded and which students are trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ardistill.config import METHODS, AdversarialConfig, MatchingConfig, TrainingConfig
from ardistill.core.knots import Knots
from ardistill.student import StudentConfig
from ardistill.trajectories import check_conditioning, steps_or_knots

RECORD = {"num_trajectories", "prompts", "solver_steps", "num_steps", "seed", "shard_size", "mixed_precision"}
"""Options of ``record``."""
STUDENT = {"history_layers", "mask", "target", "output", "gated"}
"""Options of ``StudentConfig``."""
SECTIONS = {
    "out": set(),
    "record": RECORD | {"teacher", "guidance_scale"},
    "held_out": RECORD,
    "distill": STUDENT | {"num_steps", "knots", "num_trajectories", "conditioning", "evaluations_per_step", "training"},
    "finetune": {"finetune", "method", "real", "training", "adversarial", "matching"},
    "arms": set(),
}
"""Section of a recipe -> options that may stand in it, or in an arm of that kind."""
CONFIGS = {"training": TrainingConfig, "adversarial": AdversarialConfig, "matching": MatchingConfig}
"""Options that are sections of their own."""


class Recipe:
    """A recipe whose section ``arms`` names students.

    An arm takes the options that it does not set from the section ``distill``, or ``finetune`` if it has an option of
    that name: such an arm continues another one, against a discriminator or, with ``method: dmd``, by distribution
    matching. ``evaluations_per_step`` in place of a batch size makes an optimiser step of every arm cost the same
    number of network evaluations.

    Args:
        path: YAML file.

    Attributes:
        record: Options of the training trajectories, the teacher and its guidance scale.
        held_out: Options of the held-out trajectories that differ from ``record``.
        distill: Options of arms that are distilled.
        finetune: Options of arms that continue another one.
        arms: Name of an arm -> its own options, in the order of the recipe.
        out: Folder of trajectories and runs.

    Raises:
        ValueError: The file cannot be read; a section, option or arm is unknown or missing; or a value is invalid.
    """

    def __init__(self, path: str | Path) -> None:
        found = _read(path)
        self.record: dict[str, Any] = found["record"]
        self.held_out: dict[str, Any] = found.get("held_out", {})
        self.distill: dict[str, Any] = found["distill"]
        self.finetune: dict[str, Any] = found.get("finetune", {})
        self.arms: dict[str, Any] = found["arms"]
        self.out = Path(str(found.get("out", "runs/study")))
        _check_recordings(str(path), self.record, self.held_out)
        self.lineages(self.arms)

    def lineages(self, arms: Collection[str]) -> dict[str, list[str]]:
        """Arm -> the arms that it continues, first one first, then itself; all options are checked.

        Args:
            arms: Names of arms.

        Raises:
            ValueError: An arm is missing, has an unknown option or an invalid value, or continues itself.
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

        Args:
            name: The arm.

        Raises:
            ValueError: The arm is missing, has an unknown option, or a value is invalid.
        """
        if name not in self.arms:
            raise ValueError(f"no arm {name!r}; the recipe has {', '.join(self.arms)}")
        arm = self.arms[name] or {}
        _check_mapping(f"arm {name}", arm)
        section, base = ("finetune", self.finetune) if "finetune" in arm else ("distill", self.distill)
        for given in (base, arm):
            for key in CONFIGS & given.keys():
                _check_mapping(f"arm {name}, {key}", given[key])
        nested = {key: base.get(key, {}) | arm.get(key, {}) for key in CONFIGS if key in base | arm}
        options = base | arm | nested
        _check_known(f"arm {name}", options, SECTIONS[section])
        _check_configs(f"arm {name}", options)
        try:
            _check_counts(options)
            if section == "finetune":
                _check_finetuned(options)
            else:
                _check_distilled(options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"arm {name}: {error}") from error
        return options


def _read(path: str | Path) -> dict[str, Any]:
    """The sections of a recipe, each a mapping."""
    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a recipe: {error}") from error
    if not isinstance(found, dict) or not {"record", "distill", "arms"} <= set(found) <= set(SECTIONS):
        raise ValueError(
            f"{path}: expected the sections record, held_out, distill, finetune and arms, "
            f"got {', '.join(map(str, found)) if isinstance(found, dict) else type(found).__name__}"
        )
    for section in set(found) - {"out"}:
        _check_mapping(f"{path}, section {section}", found[section])
    if not found["arms"]:
        raise ValueError(f"{path}, section arms: expected one arm or more, got none")
    return found


def _check_recordings(path: str, record: dict[str, Any], held_out: dict[str, Any]) -> None:
    """Check the options of both recordings, and give the held-out one its seed."""
    for section, options in (("record", record), ("held_out", held_out)):
        _check_known(f"section {section}", options, SECTIONS[section])
    if missing := {"teacher", "guidance_scale", "num_trajectories"} - set(record):
        raise ValueError(f"{path}, section record: {', '.join(sorted(missing))} missing")
    for section, options in (("record", record), ("held_out", held_out)):
        try:
            _check_counts(options)
        except ValueError as error:
            raise ValueError(f"{path}, section {section}: {error}") from error
    scale = record["guidance_scale"]
    if type(scale) not in (int, float) or not scale >= 1:
        raise ValueError(f"{path}, section record: expected a guidance_scale of 1 (none) or more, got {scale!r}")
    seeds = record.get("seed", 0), held_out.setdefault("seed", 1000)
    if seeds[0] == seeds[1]:
        raise ValueError(f"{path}: held_out needs another seed than record's, {seeds[0]}")


def _check_configs(where: str, options: dict[str, Any]) -> None:
    """Check the options that are sections of their own."""
    for key, config in CONFIGS.items():
        given = options.get(key, {})
        _check_known(f"{where}, {key}", given, {field.name for field in fields(config)})
        if words := [x for x, value in given.items() if isinstance(value, str) and value[:1].isdigit()]:
            raise ValueError(f"{where}: {key}.{words[0]} is a word in YAML, {given[words[0]]!r}; write 5.0e-4")
        try:
            config(**given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}, {key}: {error}") from error


def _check_distilled(options: dict[str, Any]) -> None:
    """Check the options of an arm that is distilled."""
    check_conditioning(options.get("conditioning", "recorded"))
    knots, num_steps = options.get("knots"), options.get("num_steps", 4)
    if "knots" in options and (not isinstance(knots, list) or [x for x in knots if type(x) is not int]):
        raise ValueError(f"expected knots as a list of the solver's states, got {knots!r}")
    steps_or_knots(num_steps, knots)
    evaluations = options.get("evaluations_per_step")
    if evaluations is not None and (evaluations < 1 or evaluations % num_steps):
        raise ValueError(f"{evaluations} evaluations_per_step are no multiple of its {num_steps} steps")
    if evaluations is not None and "batch_size" in options.get("training", {}):
        raise ValueError("evaluations_per_step sets the batch_size; leave one of them out")
    levels = (1.0,) * (num_steps + 1)  # placeholders: the other options are checked
    given = {key: options[key] for key in STUDENT & options.keys()}
    StudentConfig(Knots("epsilon", levels[1:], levels, levels), **given)


def _check_finetuned(options: dict[str, Any]) -> None:
    """Check the options of an arm that continues another one."""
    if not isinstance(options["finetune"], str):
        raise ValueError(f"finetune is the name of another arm, got {options['finetune']!r}")
    method = options.get("method", "adversarial")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if method == "adversarial" and "real" not in options:
        raise ValueError("real is missing, the file of real images that `ardistill encode` writes")


def _check_known(where: str, options: dict[str, Any], known: set[str]) -> None:
    """Raise a ValueError if an option is not among the known ones."""
    if unknown := sorted(map(str, options.keys() - known)):
        raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}")


def _check_mapping(where: str, value: Any) -> None:
    """Raise a ValueError unless a value is a mapping."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected options with their values, got {value!r}")


def _check_counts(options: dict[str, Any]) -> None:
    """Raise a ValueError unless all counts among the options are whole numbers of 1 or more."""
    for name in ("num_steps", "num_trajectories", "solver_steps", "shard_size", "evaluations_per_step"):
        values = options.get(name, 1)
        several: Sequence[Any] = values if name == "num_steps" and isinstance(values, list) and values else [values]
        if wrong := [x for x in several if type(x) is not int or x < 1]:
            raise ValueError(f"expected {name} of 1 or more, got {wrong[0]!r}")
