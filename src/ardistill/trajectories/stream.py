"""The order in which a stream of shards is read: shuffled, shared out over ranks and workers, exact on resume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ardistill.teacher.teacher import seeded_generator
from ardistill.trajectories.record import TrajectoryDataset


class ShardSampler(Sampler[list[int]]):
    """Batches of trajectory numbers, without end, that touch each shard once an epoch and few shards at a time.

    The shards of an epoch are shuffled and dealt out to all workers of all ranks; a worker shuffles the rows of
    ``window`` shards at a time and cuts them into batches of one sample shape. What is left of a window is left out of
    that epoch. Everything follows from (seed, number of the batch): to resume, start at the number of batches taken.

    For ``DataLoader(data, batch_sampler=ShardSampler(data, ...), num_workers=...)``, which gives batch i to worker
    i modulo ``num_workers``: no shard is read by two workers.

    Args:
        data: Whose shards.
        batch_size: Rows of a batch.
        seed: Of the order.
        start: Batches that this rank has taken before.
        rank: Of this process.
        world_size: Number of processes.
        num_workers: Of the loader; 0 is as 1.
        window: Shards whose rows are mixed; the dataset should ``keep`` as many.

    Raises:
        ValueError: There are fewer shards than workers in all, or too few rows in a window for a batch.
    """

    def __init__(
        self,
        data: TrajectoryDataset,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 1,
        window: int = 4,
    ) -> None:
        self.manifest = data.manifest
        self.batch_size, self.seed, self.start, self.window = batch_size, seed, start, window
        self.rank, self.num_workers = rank, max(1, num_workers)
        self.num_streams = world_size * self.num_workers
        shards = self.manifest.num_shards
        if not 0 <= rank < world_size:
            raise ValueError(f"expected a rank in 0..{world_size - 1}, got {rank}")
        if shards < self.num_streams:
            raise ValueError(
                f"expected {self.num_streams} shards or more, one for each worker of each process, got {shards}; "
                "take fewer workers, or record in smaller shards"
            )
        for stream in range(rank * self.num_workers, (rank + 1) * self.num_workers):
            if next(self._epoch(0, stream), None) is None:
                raise ValueError(
                    f"{window} shards of {self.manifest.shard_size} trajectories, of {shards} for {self.num_streams} "
                    f"workers, do not fill a batch of {batch_size}; take a wider window, fewer workers or "
                    "a smaller batch"
                )

    def __iter__(self) -> Iterator[list[int]]:
        first = self.rank * self.num_workers
        streams = [self._stream(first + worker) for worker in range(self.num_workers)]
        return itertools.islice((next(stream) for stream in itertools.cycle(streams)), self.start, None)

    def _stream(self, stream: int) -> Iterator[list[int]]:
        for epoch in itertools.count():
            yield from self._epoch(epoch, stream)

    def _epoch(self, epoch: int, stream: int) -> Iterator[list[int]]:
        order = torch.randperm(
            self.manifest.num_shards, device="cpu", generator=seeded_generator(f"{self.seed}/{epoch}/order")
        )
        mine = order[stream :: self.num_streams].tolist()
        generator = seeded_generator(f"{self.seed}/{epoch}/{stream}/rows")
        for at in range(0, len(mine), self.window):
            yield from self._batches(mine[at : at + self.window], generator)

    def _batches(self, shards: list[int], generator: torch.Generator) -> list[list[int]]:
        manifest, batches = self.manifest, []
        for shape in sorted({manifest.shape_of(shard) for shard in shards}):
            rows = torch.cat(
                [
                    shard * manifest.shard_size + torch.arange(manifest.num_rows(shard), device="cpu")
                    for shard in shards
                    if manifest.shape_of(shard) == shape
                ]
            )
            rows = rows[torch.randperm(len(rows), generator=generator, device="cpu")]
            whole = len(rows) // self.batch_size * self.batch_size
            batches += rows[:whole].view(-1, self.batch_size).tolist()
        order = torch.randperm(len(batches), generator=generator, device="cpu")  # of the shapes, too
        return [batches[i] for i in order.tolist()]
