"""How processes that record into one folder share the work: each takes its part first, then helps the others."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def choose(missing: Sequence[T], number: Callable[[T], int]) -> T:
    """Choose what to make next: the first piece of this process's part or, if its part is done, any at random.

    Of processes that ``accelerate launch`` started, each has the pieces whose number modulo WORLD_SIZE is its RANK. A
    process that was started alone has no part. Random choice makes it rare that two helpers make the same piece; if
    they do, the file published last stands.

    Args:
        missing: The missing pieces, in order; one or more.
        number: Number of a piece.
    """
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    own = [piece for piece in missing if number(piece) % world_size == rank] if world_size > 1 else []
    return own[0] if own else random.SystemRandom().choice(missing)
