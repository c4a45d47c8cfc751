"""Embedded teachers, small enough to ship, each with a network and reference statistics that judge its samples.

A folder holds the data set's module, ``teacher/`` (a diffusers folder), ``student/`` (a student of it in 4 steps), a
network (``classifier.safetensors`` for a teacher that takes classes, ``detector.safetensors`` for one that takes
prompts) and ``reference.safetensors``.
"""

from __future__ import annotations

from pathlib import Path

FOLDERS = {name: Path(__file__).parent / name for name in ("emoji", "fashion", "scenes")}
"""Name of a teacher's data set -> its folder."""
CLASS_CONDITIONAL = ("emoji", "fashion")
"""Names of the data sets whose teachers take classes."""
_STUDENTS = {f"zoo/{name}-student": folder / "student" for name, folder in FOLDERS.items()}
STUDENTS = {name: folder for name, folder in _STUDENTS.items() if folder.is_dir()}
"""Name of an embedded student -> its folder."""
