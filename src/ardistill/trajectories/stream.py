"""The order in which a training loop streams shards: shuffled, divided over ranks and workers, exact on resume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ardistill.teacher import seeded_generator
from ardistill.trajectories.dataset import TrajectoryDataset


class ShardSampler(Sampler[list[int]]):
    """An endless stream of batches that reads each shard once per epoch and few shards at a time, for your own loop.

    The shards of an epoch are shuffled and divided over all workers of all ranks. A worker shuffles the rows of
    ``window`` shards at a time and cuts them into batches of one sample shape; rows that do not fill a batch are left
    out in that epoch. The order is a function of the seed and the number of the batch: to resume, set ``start`` to the
    number of batches taken so far.

    Pass it to ``DataLoader`` as ``batch_sampler``. A loader gives batch i to worker i modulo ``num_workers``, so that
    no shard is read by two workers.

    Args:
        data: Recorded trajectories.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        start: Number of batches that this rank has taken before.
        rank: Rank of this process.
        world_size: Number of processes.
        num_workers: Number of the loader's workers; 0 is treated as 1.
        window: Number of shards whose rows are mixed; let the data set ``keep`` as many.

    Raises:
        ValueError: There are fewer shards than workers of all processes, or a window does not fill a batch.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader
        >>> from ardistill import ShardSampler, Teacher, TrajectoryDataset, record
        >>> teacher, folder = Teacher.from_pretrained("zoo/fashion", device="cpu"), tempfile.mkdtemp()
        >>> options = {"solver_steps": 4, "num_steps": [2], "shard_size": 4, "progress": False}
        >>> manifest = record(teacher, folder, num_trajectories=16, **options)
        >>> data = TrajectoryDataset(folder, num_steps=2)
        >>> loader = DataLoader(data, batch_sampler=ShardSampler(data, batch_size=8))
        >>> batches = iter(loader)
        >>> next(batches)["states"].shape
        torch.Size([8, 3, 1, 28, 28])
        >>> resumed = iter(DataLoader(data, batch_sampler=ShardSampler(data, batch_size=8, start=1)))
        >>> import torch
        >>> torch.equal(next(resumed)["states"], next(batches)["states"])
        True
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
        """The endless batches of one worker of one rank."""
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
        """The batches of one window of shards, in random order."""
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
        order = torch.randperm(len(batches), generator=generator, device="cpu")  # mixes the shapes
        return [batches[i] for i in order.tolist()]
