"""Random generators that are seeded by a text key, so that every random choice is a pure function of its name."""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(key: str) -> torch.Generator:
    """A CPU generator seeded by the SHA-256 of ``key``, so that similar keys give unrelated streams."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]))
