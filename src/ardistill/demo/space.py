"""The page as a Hugging Face Space: a folder to upload."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import SpaceCardData

from ardistill.demo.studio import EMBEDDED
from ardistill.errors import version
from ardistill.evaluation import run_of
from ardistill.files import check_folder, whole_folder
from ardistill.student import Student, check_whole
from ardistill.teacher import split_name
from ardistill.teacher.source import local_path

_APP = '''"""Few-step students beside their teacher: the page of `ardistill demo`."""

from ardistill.demo import demo

demo({students}, teacher={teacher}, host="0.0.0.0")
'''


def write_space(folder: str | Path, students: Sequence[str] = (EMBEDDED,), *, teacher: str | None = None) -> None:
    """Write the page as a Hugging Face Space: ``app.py``, ``requirements.txt``, ``README.md`` and the students.

    Students on this machine are copied into it; of embedded ones and those on the Hub it holds the name alone.

    Args:
        folder: New or empty folder.
        students: As for ``demo``.
        teacher: Hub id of the students' teacher, where they recorded a folder of this machine.

    Raises:
        ValueError: The folder is not empty, there is no such student, or its teacher is a folder of this machine.
    """
    import gradio  # before any work: the Space runs this version

    check_folder(folder)
    if not students:
        raise ValueError("expected one student or more, got none")
    loaded = {name: Student.from_pretrained(name, "cpu") for name in dict.fromkeys(students)}
    for name, student in loaded.items():
        check_whole(student.config, name)
        where = teacher or student.config.teacher
        if not where or local_path(split_name(where)[0]).exists():
            raise ValueError(
                f"{name}: expected a teacher that a Space finds, embedded or on the Hub, got {where or 'no name'!r}; "
                "publish it and name its Hub id with --teacher"
            )
    names = _names(loaded)
    with whole_folder(folder) as made:
        for name, student in loaded.items():
            if names[name] != name:
                student.save_pretrained(made / names[name])
        takes_text = any(x.family.encode is not None for x in loaded.values())
        app = _APP.format(students=json.dumps([*names.values()]), teacher=json.dumps(teacher) if teacher else None)
        (made / "app.py").write_text(app)
        (made / "requirements.txt").write_text(f"ardistill[demo{',text' if takes_text else ''}]=={version()}\n")
        (made / "README.md").write_text(_card(loaded, names, teacher, gradio.__version__))
        (made / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")


def _names(students: Iterable[str]) -> dict[str, str]:
    """Name of a student -> its name in the Space: a folder in it, if the student is a folder of this machine."""
    found = {}
    for name in students:
        if not local_path(split_name(name)[0]).exists():
            found[name] = name
            continue
        run, step = run_of(name)
        inside = f"students/{run.name}{step}"
        found[name] = inside if inside not in found.values() else f"{inside}-{len(found)}"
    return found


def _card(students: dict[str, Student], names: dict[str, str], teacher: str | None, gradio_version: str) -> str:
    """The Space's README: its metadata, and what the page shows."""
    used = [*{teacher or x.config.teacher for x in students.values()}, *names.values()]
    models = sorted({split_name(x)[0] for x in used if not x.startswith(("zoo/", "students/"))})
    steps = ", ".join(f"`{names[name]}` ({student.num_steps})" for name, student in students.items())
    facts = SpaceCardData(
        title="A few steps beside their teacher",
        sdk="gradio",
        sdk_version=gradio_version,
        python_version="3.11",
        app_file="app.py",
        models=models or None,
        tags=["ardistill", "few-step"],
    )
    return f"""---
{facts.to_yaml()}
---

# A few steps beside their teacher

Draws an image from the same noise with a few-step student, with its teacher's own solver in as many steps, and with
the teacher in many. Students, with their steps: {steps}. Made by `ardistill demo --space`.
"""
