"""The command that publishes a student: export."""

from __future__ import annotations

from pathlib import Path

from ardistill.cli.command import Result
from ardistill.cli.options import ExportOptions, RecordedTeacher


def export(options: ExportOptions, recorded: RecordedTeacher) -> Result:
    """Write a student as a diffusers folder that loads without this package; `hf upload` publishes it.

    Where the teacher's own diffusers pipeline can draw the student, the folder holds no code, and the call is printed.
    The teacher's VAE is copied along. `--form` writes a LoRA or a single file of weights in its place. The card shows
    the figures and the picture of `ardistill evaluate` if the run was evaluated, else the last grid of its training.
    """
    from ardistill import publishing
    from ardistill.evaluation import evaluation_folder, run_of
    from ardistill.student import Student
    from ardistill.student.files import read_adapters
    from ardistill.teacher import load_recorded_teacher

    if options.form == "lora":
        teacher = load_recorded_teacher(read_adapters(Path(options.student))[0], recorded.teacher, "cpu")
        student = Student.from_adapters(teacher, options.student)
    else:
        student = Student.from_pretrained(options.student, "cpu")
        teacher = load_recorded_teacher(student.config, recorded.teacher, "cpu")
    run, step = run_of(options.student)
    evaluation = evaluation_folder(options.student)
    figures = (evaluation / "figures.md").read_text() if (evaluation / "figures.md").is_file() else ""
    grids = sorted((run / "samples").glob(f"{step[1:] or 'step-*'}.png"))
    picture = evaluation / "samples.png" if figures else grids[-1] if grids else None
    drawing = publishing.export(student, teacher, options.out, form=options.form, figures=figures, picture=picture)
    text = f'DiffusionPipeline.from_pretrained("{options.out}"{"" if drawing else ", trust_remote_code=True"})'
    if options.form != "pipeline":
        text = f"{options.out}/README.md says how to load it on the base model"
    elif drawing:
        text += f"\nwithout code of its own: {publishing.call_of(student, drawing)}"
    return Result({"out": options.out, "evaluated": bool(figures)}, text)
