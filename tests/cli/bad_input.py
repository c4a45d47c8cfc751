"""Cases of bad input: each gives one line that says what is wrong, and leaves every folder as it was.

At the command line the exit status is 2; in Python a ValueError is raised.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ardistill.cli import main

RECORD = "record --teacher zoo/fashion --out out --num_trajectories 4 --guidance_scale 1.25 --solver_steps 4"
RECORD += " --num_steps [4] --device cpu"
DISTILL = "distill --trajectories data --out out --history_layers 1 --training.max_steps 1 --training.batch_size 2"
DISTILL += " --training.tracker null"
SAMPLE = "sample --student run --device cpu --out out.png"
FINETUNE = "finetune --student run --trajectories data --out out --real"
COMPARE = "compare --recipe recipe.yaml"
COST = "cost --teacher DiT-S/2"


@dataclass(frozen=True)
class Case:
    """Typed (words) or called; ``said``, a regular expression, is in the message."""

    act: str | Callable[[], object]
    said: str
    harm: dict[str, Callable[[bytes], bytes] | str | None] = field(default_factory=dict)
    """File -> what becomes of it: changed, written, or deleted."""

    def __str__(self) -> str:
        acted = self.act if isinstance(self.act, str) else "call"
        return " ".join([acted, *self.harm])[:80].replace("/", ".")


def look(folder: Path) -> dict[str, object]:
    """All there is in a folder."""
    return {str(x): x.stat().st_mtime_ns if x.is_file() else None for x in sorted(folder.rglob("*"))}


def name_cases(cases: list[Case]) -> list[str]:
    return [f"{i}-{case}" for i, case in enumerate(cases)]


def check(case: Case, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """See that bad input is named in one line and that every file stays as it was."""
    for path, harm in case.harm.items():
        old = Path(path).read_bytes() if Path(path).exists() else b""
        Path(path).unlink(missing_ok=True)  # it is a link
        if harm is not None:
            Path(path).write_bytes(harm.encode() if isinstance(harm, str) else harm(old))
    before = look(world)
    if callable(case.act):
        with pytest.raises(ValueError, match=case.said) as raised:
            case.act()
        message = f"{raised.value}\n"
    else:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(case.act.split())
        message = capsys.readouterr().err
        assert exit.value.code == 2
        message = message.splitlines(keepends=True)[-1]  # others before it may say how far it came
        assert re.search(case.said, message), message
    assert message.count("\n") == 1 and len(message) < 1000, message
    assert look(world) == before, message
