"""The command that publishes a student: export."""

from __future__ import annotations

from ardistill.cli.command import Result
from ardistill.cli.options import ExportOptions, PushOptions, RecordedTeacher


def export(options: ExportOptions, hub: PushOptions, recorded: RecordedTeacher) -> Result:
    """Write a student as a diffusers folder that loads without this package, and push it to the Hub.

    The teacher's VAE is copied along. The card shows the figures and the picture of `ardistill evaluate` if the run was
    evaluated, else the last grid of its training. The same command again continues an interrupted push.
    """
    from ardistill import publishing
    from ardistill.evaluation import evaluation_folder
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher

    if hub.push is not None:
        publishing.check_push(hub.push, private=hub.private)
    student = Student.from_pretrained(options.student, "cpu")
    if hub.push is None or not publishing.is_export_of(options.out, student):
        teacher = load_recorded_teacher(student.config, recorded.teacher, "cpu")
        datasets = options.datasets or ()
        publishing.export(
            student, teacher, options.out, run=options.student, license=options.license, datasets=datasets
        )
    found = {"out": options.out, "evaluated": (evaluation_folder(options.student) / "figures.md").is_file()}
    if hub.push is None:
        return Result(found, f'DiffusionPipeline.from_pretrained("{options.out}", trust_remote_code=True)')
    url = publishing.push(options.out, hub.push, private=hub.private, license=options.license)
    return Result(found | {"url": url}, url)
