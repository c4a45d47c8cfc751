"""Seals: a file's own SHA-256 checksum, stored inside the file.

The writer puts `SEAL`, a checksum of zeros, wherever the checksum shall stand; `seal` replaces it. Checksum and content
are one object, so that a file and a checksum of different writers can never meet.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

SEAL = "sha256:" + "0" * 64
"""Placeholder that a file to be sealed contains at least once; the checksum takes its place."""
REPAIR = "`ardistill trajectories repair` makes it again, or delete it and run the same record command"
"""The remedy for a damaged file of a recording."""


def seal(data: bytes) -> bytes:
    """Replace every `SEAL` in a file's content by the content's checksum."""
    blank = SEAL.encode()
    assert blank in data
    return data.replace(blank, f"sha256:{_digest(data, blank)}".encode())


def check_seal(data: bytes | memoryview, where: str, remedy: str = REPAIR) -> None:
    """Check that a file is what was sealed, to the last byte.

    Args:
        data: Content of the file.
        where: Its path or URL, for the message.
        remedy: What to do about a damaged file, for the message.

    Raises:
        ValueError: The checksum is missing or differs.
    """
    found = re.search(rb"sha256:[0-9a-f]{64}", data)
    if found is None or found[0].decode() != f"sha256:{_digest(data, found[0])}":
        raise ValueError(f"{where} is not what its checksum says; {remedy}")


def _digest(data: bytes | memoryview, seal: bytes) -> str:
    """SHA-256 of ``data`` with zeros in the place of its seal."""
    digest, position, view = hashlib.sha256(), 0, memoryview(data)
    for found in re.finditer(re.escape(seal), data):
        digest.update(view[position : found.start()])
        digest.update(SEAL.encode())
        position = found.end()
    digest.update(view[position:])
    return digest.hexdigest()


def sealed_json(data: dict[str, Any]) -> bytes:
    """A JSON object with the checksum of its own text."""
    return seal(json.dumps(data | {"seal": SEAL}, indent=2).encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of a run or an export; where it has a seal, the seal is checked and left out.

    Raises:
        ValueError: The file is missing, cut, not JSON, or not what was sealed.
    """
    try:
        raw = path.read_bytes()
        found = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing, cut or damaged ({error}); write it again, from its run") from error
    if isinstance(found, dict) and found.pop("seal", None) is not None:
        check_seal(raw, str(path), "write it again, from its run; if you changed it yourself, take out its seal")
    return found
