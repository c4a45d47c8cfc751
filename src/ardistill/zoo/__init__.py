"""Embedded teachers, small enough to ship, each with what its samples are judged by; all is loaded by its name.

A folder holds the data set's module, ``teacher/`` (a diffusers folder), ``classifier.safetensors`` and
``reference.safetensors``.
"""

from __future__ import annotations

from pathlib import Path

FOLDERS = {name: Path(__file__).parent / name for name in ("emoji", "fashion")}
"""Name of a teacher's data set to its folder."""
