"""The command that publishes a student: export."""

from __future__ import annotations

from ardistill.cli.command import Result
from ardistill.cli.options import ExportOptions, RecordedTeacher


def export(options: ExportOptions, recorded: RecordedTeacher) -> Result:
    """Write a student as a diffusers folder that loads without this package; `hf upload` publishes it.

    Where the teacher's own diffusers pipeline can draw the student, the folder holds no code, and the call is printed.
    The teacher's VAE is copied along. The card shows the figures and the picture of `ardistill evaluate` if the run was
    evaluated, else the last grid of its training.
    """
    from ardistill import publishing
    from ardistill.evaluation import evaluation_folder, run_of
    from ardistill.student import Student
    from ardistill.teacher import load_recorded_teacher

    student = Student.from_pretrained(options.student, "cpu")
    run, step = run_of(options.student)
    evaluation = evaluation_folder(options.student)
    figures = (evaluation / "figures.md").read_text() if (evaluation / "figures.md").is_file() else ""
    grids = sorted((run / "samples").glob(f"{step[1:] or 'step-*'}.png"))
    picture = evaluation / "samples.png" if figures else grids[-1] if grids else None
    teacher = load_recorded_teacher(student.config, recorded.teacher, "cpu")
    drawing = publishing.export(student, teacher, options.out, figures=figures, picture=picture)
    text = f'DiffusionPipeline.from_pretrained("{options.out}"{"" if drawing else ", trust_remote_code=True"})'
    if drawing:
        text += f"\nwithout code of its own: {publishing.call_of(student, drawing)}"
    return Result({"out": options.out, "evaluated": bool(figures)}, text)
