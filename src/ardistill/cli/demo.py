"""The command that shows students to people: demo."""

from __future__ import annotations

from ardistill.cli.command import Result
from ardistill.cli.options import ComputeDevice, ComputePrecision, DemoOptions, RecordedTeacher


def demo(
    options: DemoOptions, recorded: RecordedTeacher, machine: ComputeDevice, precision: ComputePrecision
) -> Result:
    """Serve a page that draws with students beside their teacher, step by step; or write it as a Hugging Face Space.

    Ctrl-C ends the page. It needs Gradio: pip install "ardistill[demo]".
    """
    from ardistill import demo as room

    students = [options.student] if isinstance(options.student, str) else options.student or [room.EMBEDDED]
    if options.space:
        room.write_space(options.space, students, teacher=recorded.teacher)
        return Result({"space": options.space, "students": students}, f"a Space in {options.space}")
    address = room.demo(
        students,
        teacher=recorded.teacher,
        host=options.host,
        port=options.port,
        share=options.share,
        browser=options.browser,
        device=machine.device,
        mixed_precision=precision.mixed_precision,
    )
    return Result({"address": address, "students": students}, f"the page at {address} is closed")
