"""The command that publishes a student: export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ardistill.cli.command import Result
from ardistill.cli.options import ExportOptions, PushOptions, RecordedTeacher

if TYPE_CHECKING:
    from collections.abc import Callable

    from ardistill.student import Student


def export(options: ExportOptions, hub: PushOptions, recorded: RecordedTeacher) -> Result:
    """Write a student as a diffusers folder that loads without this package, and push it to the Hub.

    Where the teacher's own diffusers pipeline can draw the student, the folder holds no code, and the card gives the
    call. The teacher's VAE is copied along. `--form` writes a LoRA or a single file of weights in its place. The card
    shows the figures and the picture of `ardistill evaluate` if the run was evaluated, else the last grid of its
    training. The same command again continues an interrupted push.
    """
    from ardistill import publishing
    from ardistill.evaluation import evaluation_folder
    from ardistill.student import Student, StudentPair
    from ardistill.student.files import read_adapters
    from ardistill.teacher import load_recorded_teacher

    form, out, teacher = options.form, options.out, None
    if hub.push is not None:
        publishing.check_push(hub.push, private=hub.private)
    if form == "lora":
        config = read_adapters(Path(options.student))[0]
        teacher = load_recorded_teacher(config, recorded.teacher, "cpu", in_parts=True)
        read: Callable[[str], Student] = partial(Student.from_adapters, teacher)
    else:
        read = partial(Student.from_pretrained, device="cpu")
    student = read(options.student)
    if options.second is not None:
        student = StudentPair(student, read(options.second))
    if hub.push is None or not publishing.is_export_of(out, student, form, None if form == "lora" else options.dtype):
        teacher = teacher or load_recorded_teacher(student.config, recorded.teacher, "cpu", in_parts=True)
        publishing.export(
            student,
            teacher,
            out,
            form=form,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            run=options.student,
            second_run=options.second,
            license=options.license,
            datasets=options.datasets or (),
        )
    found = {"out": out, "evaluated": (evaluation_folder(options.student) / "figures.md").is_file()}
    if hub.push is None:
        return Result(found, publishing.example_of(out))
    url = publishing.push(out, hub.push, private=hub.private, license=options.license)
    return Result(found | {"url": url}, url)
