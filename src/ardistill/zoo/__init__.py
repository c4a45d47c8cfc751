"""Embedded teachers, small enough to ship, each with what its samples are judged by; all is loaded by its name.

A folder holds the data set's module, ``teacher/`` (a diffusers folder) and the judge: ``classifier.safetensors`` where
the teacher takes classes, ``detector.safetensors`` where it takes prompts, and ``reference.safetensors``.
"""

from __future__ import annotations

from pathlib import Path

FOLDERS = {name: Path(__file__).parent / name for name in ("emoji", "fashion", "scenes")}
"""Name of a teacher's data set to its folder."""
CLASS_CONDITIONAL = ("emoji", "fashion")
"""Those whose teachers take classes."""
