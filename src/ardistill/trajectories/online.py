"""Trajectories that are solved when they are needed, instead of being read from a recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ardistill.core.knots import Knots
from ardistill.devices import Device, resolve_device
from ardistill.teacher import Teacher
from ardistill.trajectories.dataset import TrajectoryDataset
from ardistill.trajectories.last_used import LastUsed
from ardistill.trajectories.shard_maker import ShardMaker


class OnlineTrajectories(TrajectoryDataset):
    """The trajectories of a manifest, solved when they are needed, equal to what the same machine would record: on a
    CPU to the bit, elsewhere up to the rounding of another batch size.

    A shard is solved whole, as for a recording, and forgotten after use. Choose ``shard_size`` equal to the batch size
    and draw batches by shards, so that every solved row is used.

    Args:
        folder: A folder that ``record`` wrote, with or without shards; they are not read.
        num_steps: Steps of the student, as for ``TrajectoryDataset``.
        teacher: The recording's teacher.
        device: Device that the teacher is moved to; its current device if not given.
        draws: As for ``TrajectoryDataset``; ``shards`` if not given.

    Raises:
        ValueError: The teacher is not the recording's, or its prompts are missing.
    """

    reads_ahead = False
    """The teacher solves on the device that the student trains on, and its modules are not for two threads at once."""

    def __init__(
        self,
        folder: str | Path,
        num_steps: int | Sequence[int] | Knots,
        teacher: Teacher,
        device: Device = None,
        *,
        draws: Literal["rows", "shards"] | None = None,
    ) -> None:
        super().__init__(folder, num_steps, teacher.fingerprint(), draws=draws or "shards", keep=1)
        where = resolve_device(device, teacher.device)
        self._shards = LastUsed(
            ShardMaker(teacher, self.manifest, self._table, where, self.manifest.shard_size), keep=1
        )

    def _check_complete(self) -> None:
        """Shards are not needed; the prompts' embeddings are opened by the constructor."""
