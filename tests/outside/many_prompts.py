"""Recordings of many prompts, which the tests of sizes share."""

from __future__ import annotations

from pathlib import Path

OPTIONS = {"solver_steps": 2, "num_steps": (2,), "shard_size": 64, "progress": False}
"""Options of `record`: little work for each trajectory."""


def words(count: int) -> list[str]:
    """Distinct prompts of different lengths."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        f"a {letters[i % 26]}{letters[i // 26 % 26]}{letters[i // 676 % 26]}" + " cat" * (i % 5) for i in range(count)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
