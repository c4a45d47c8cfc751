"""The student: made from its teacher, saved, and read again."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path

from ardistill.core.config import StudentConfig
from ardistill.devices import Device, resolve_device
from ardistill.student import files
from ardistill.student.graphed import GraphedSampler
from ardistill.student.lora import add_adapters, check_trainable, merge_adapters, share_weights
from ardistill.student.model import FewStepModel
from ardistill.teacher import (
    Teacher,
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
            ValueError: The teacher's weights are quantised and the student has no adapters.
        """
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
