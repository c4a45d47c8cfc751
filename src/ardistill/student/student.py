"""The student: made from its teacher, saved, and read again."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ardistill.core.config import EXPERTS, StudentConfig
from ardistill.core.experts import PairConfig
from ardistill.devices import Device, resolve_device
from ardistill.families import Condition
from ardistill.student import files
from ardistill.student.graphed import GraphedSampler
from ardistill.student.lora import add_adapters, check_trainable, merge_adapters, share_weights
from ardistill.student.model import FewStepModel
from ardistill.teacher import (
    Teacher,
    check_expert,
    check_same_teacher,
    load_recorded_teacher,
    load_trainable,
    part_to_start_from,
    start_from,
)


class Student(FewStepModel):
    """A transformer that takes ``num_steps`` steps from noise to image and attends to the earlier ones.

    Args:
        transformer: A transformer of a known family; extended in place by a history, and by heads where the output is
            ``direct``.
        config: Knots, history, target and output.

    Raises:
        ValueError: The family is not known, or ``history_layers`` exceeds the depth of the transformer.
    """

    @classmethod
    def from_teacher(cls, teacher: Teacher, config: StudentConfig) -> Student:
        """Start from a copy of the teacher's weights or, with adapters, on the teacher's weights themselves.

        A copy of a teacher that was loaded in bfloat16 is read from its files in float32, as training needs. Of a
        teacher of two transformers (Wan 2.2) it is the one that predicts at more of the student's steps.

        Args:
            teacher: The teacher that the student is distilled from.
            config: The student's configuration, as ``TrajectoryDataset.student_config`` makes it.

        Raises:
            ValueError: The teacher's weights are quantised and the student has no adapters, or it is the student of an
                expert that the teacher does not have or that predicts elsewhere.
        """
        check_expert(teacher, config)
        if not config.lora_rank:
            check_trainable(teacher.weights, config.lora_rank)
            if teacher.source is not None and teacher.weights != "float32":
                part = part_to_start_from(teacher, config.knots)
                copied = load_trainable(teacher.source, part).to(teacher.device)
            else:
                copied = copy.deepcopy(start_from(teacher, config.knots))
            return cls(copied.requires_grad_(True), config)
        base = start_from(teacher, config.knots)
        student = cls(share_weights(base), config)
        add_adapters(student.transformer, base.parameters(), student.family.block_lists, config.lora_rank)
        return student

    def graphed(self, batch_size: int, mixed_precision: str = "auto") -> GraphedSampler:
        """A sampler that replays one CUDA graph: for drawing at once, again and again, in the same shapes.

        Args:
            batch_size: Rows that it draws at most.
            mixed_precision: As for ``sample``.

        Raises:
            ValueError: The student is not on CUDA.
        """
        return GraphedSampler(self, batch_size, mixed_precision)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``transformer/`` (a diffusers folder, safetensors) and ``student.json``.

        Where the weights are divided over processes, each process has to call it; the first one writes.
        """
        files.save_student(self, Path(folder))

    def save_adapters(self, folder: str | Path) -> None:
        """Write what was trained beside the teacher's weights: ``pytorch_lora_weights.safetensors``, which diffusers'
        ``load_lora_weights`` reads, the gates and heads that diffusers does not know, and ``student.json``.

        Where the weights are divided over processes, each process has to call it; the first one writes.
        """
        files.save_adapters(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: Device = None, *, keep_dtype: bool = False) -> Student:
        """Read a run's folder, one of its checkpoints (EMA), what ``save_pretrained`` or what ``export`` wrote, history
        and heads included; or what ``save_adapters`` wrote, which is merged into the weights of its teacher.

        Args:
            folder: Any of these, an embedded student such as ``zoo/fashion-student``, or the Hub id of an export.
            device: Where the student is put; the best device there is if not given.
            keep_dtype: Whether weights keep the type of their files, as an export in bfloat16 has it, instead of
                float32.

        Returns:
            The student; of an export of two transformers a `StudentPair`.

        Raises:
            ValueError: There is no student there, it was written by a newer version, or there is no such device.
        """
        where, there = resolve_device(device), files.locate_student(folder)
        if all((there / name).is_file() for name in (files.ADAPTERS, "student.json")):
            config, weights = files.read_adapters(there)
            transformer = start_from(load_recorded_teacher(config, device="cpu", weights="float32"), config.knots)
            student = cls(transformer, replace(config, lora_rank=0))
            merge_adapters(student.transformer, weights)
            return student.eval().to(where)
        found = files.find_student(there)
        student = cls(found.make_transformer(), found.config)
        found.fill(student, keep_dtype)
        if found.config.expert and (there / EXPERTS["low_noise"]).is_dir():  # an export of two
            found = files.find_student(there, EXPERTS["low_noise"])
            second = cls(found.make_transformer(), found.config)
            found.fill(second, keep_dtype)
            student = StudentPair(student, second)
        return student.eval().to(where)

    @classmethod
    def from_run_for_training(cls, folder: str | Path, config: StudentConfig) -> Student:
        """Read a student to train it further, on the CPU, with all weights trainable.

        Args:
            folder: A run, or one of its checkpoints.
            config: The configuration that the student must have; only the teacher's name may differ.

        Raises:
            ValueError: There is no student there, or its configuration differs.
        """
        found = cls.from_pretrained(folder, "cpu")
        if len(found.parts) > 1:
            raise ValueError(f"{folder} is of two transformers, each of which is trained alone; name the run of one")
        there, asked = asdict(found.config), asdict(config) | {"teacher": found.config.teacher}
        wrong = [f"{name} is {x!r} there, {asked[name]!r} asked for" for name, x in there.items() if x != asked[name]]
        if wrong:
            raise ValueError(f"{folder} is another student ({'; '.join(wrong)}); give its own options and trajectories")
        return found.requires_grad_(True)

    @classmethod
    def from_adapters(cls, teacher: Teacher, folder: str | Path) -> Student:
        """Read what ``save_adapters`` wrote, on the teacher's weights, which are shared, and on the teacher's device.

        Args:
            teacher: The teacher that the student was distilled from.
            folder: What ``save_adapters`` wrote, or a finished run, which has it as its subfolder ``adapters``.

        Raises:
            ValueError: They are not there, or of another teacher.
        """
        config, weights = files.read_adapters(Path(folder))
        check_same_teacher(f"the adapters in {folder}", config, teacher, "name the teacher they belong to")
        student = cls.from_teacher(teacher, config)
        files.fill_adapters(student, weights, Path(folder))
        return student.eval()


class StudentPair(Student):
    """A student of two transformers, for a teacher of two: two students that draw one after the other.

    Each draws its expert's part of the path, with a history of its own. The pair draws, is measured and is exported as
    any student; the two are trained and saved by themselves.

    Args:
        first: The student of the high-noise expert.
        second: The student of the low-noise expert, which starts where the first one ends.

    Raises:
        ValueError: They do not go together.
    """

    config: PairConfig

    def __init__(self, first: Student, second: Student) -> None:
        nn.Module.__init__(self)
        self.config = PairConfig.join(first.config, second.config)
        if first.class_name != second.class_name:
            raise ValueError(
                f"expected two transformers of one class, got {first.class_name} and {second.class_name}; distil both "
                "from one teacher"
            )
        self.first, self.second = first, second
        self.family, self.class_name = first.family, first.class_name
        self.has_own_weights = first.has_own_weights or second.has_own_weights

    @property
    def parts(self) -> dict[str, FewStepModel]:
        """Component of a pipeline -> the student that it is."""
        return {EXPERTS[student.config.expert]: student for student in (self.first, self.second)}

    @property
    def transformer(self) -> Any:
        """The transformer of the first student."""
        return self.first.transformer

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile each block of both transformers in place."""
        for student in self.parts.values():
            student.compile(*args, **options)

    def forward(self, inputs: Tensor, condition: Condition, *args: Any, **options: Any) -> Tensor:
        """All steps, teacher-forced, those of each student in one folded pass; other ways are for training."""
        if args or options:
            raise ValueError("two students are trained one by one, each by its own forward")
        at = self.first.num_steps
        return torch.cat([self.first(inputs[:, :at], condition), self.second(inputs[:, at:], condition)], dim=1)

    def step(self, inputs: Tensor, step: int, condition: Condition, cache: dict) -> Tensor:
        """One step of each sample; the cache of either student is apart."""
        at = self.first.num_steps
        student, index = (self.first, step) if step < at else (self.second, step - at)
        return student.step(inputs, index, condition, cache.setdefault(student.config.expert, {}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Raise a ValueError: the two are saved by themselves, and together they are exported."""
        raise ValueError(
            "a student of two transformers is not saved as one; export it, and name that folder or Hub id, or save its "
            "two students"
        )


def check_whole(config: StudentConfig, name: str | Path = "the student") -> None:
    """Refuse a student that draws a part of the path alone where the whole path is drawn.

    Args:
        config: The student's configuration.
        name: What the message calls it.

    Raises:
        ValueError: It is the student of one expert.
    """
    if config.expert:
        raise ValueError(
            f"{name} draws the {config.expert} expert's part of the path alone; distil the other part, too, put both "
            "together (ardistill export --student HIGH_NOISE --second LOW_NOISE, or StudentPair), and take the result"
        )
