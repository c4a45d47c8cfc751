"""Options and helpers that the tests of recordings share."""

import re

from ardistill.files import SEAL, seal

OPTIONS = {"solver_steps": 4, "num_steps": (1, 2, 4), "shard_size": 4, "progress": False}


def contents(folder):
    """Content of each file by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def resealed(data: bytes) -> bytes:
    """A file with a new checksum of its changed content, so that a reader gets past the checksum."""
    found = re.search(rb"sha256:[0-9a-f]{64}", data)
    return seal(data.replace(found[0], SEAL.encode())) if found else data
