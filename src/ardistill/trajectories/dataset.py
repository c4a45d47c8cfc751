"""Recorded trajectories as a data set: read from a folder or bucket, one row or one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ardistill.core.config import StudentConfig
from ardistill.core.knots import Knots
from ardistill.families import Condition
from ardistill.files import Store
from ardistill.teacher import Identity, check_same_teacher
from ardistill.trajectories.conditions import ConditionTable, find_parts, look_up, open_conditions, read_prompts
from ardistill.trajectories.knots import check_conditioning, condition_uniformly, knot_indices, select_knots
from ardistill.trajectories.last_used import LastUsed
from ardistill.trajectories.manifest import PROMPTS, Manifest
from ardistill.trajectories.parquet_files import open_shards
from ardistill.trajectories.shard_files import ShardFiles
from ardistill.trajectories.shards import DTYPES, Shard

_BATCHES_AHEAD = 4
"""Batches, this one included, whose shards are open at a time where they are fetched and a batch needs several."""


class TrajectoryDataset(Dataset):
    """Recorded trajectories as one student needs them: mapped from a folder, or streamed from any URL of fsspec.

    Item i is a dict of ``states`` (s + 1, c, h, w), ``denoised`` (s, c, h, w) and ``condition``, itself a dict, with
    the guidance scale in it; all in float32. Opening reads names and sizes only; a shard's checksum is checked when it
    is first used.

    Args:
        folder: A path or URL that ``record`` wrote, or the Parquet form of it, such as ``hf://datasets/you/name``.
        num_steps: Steps of the student, uniform; or the indices of the solver's states that its steps run between; or
            its knots, whose times may be others than the recorded ones.
        fingerprint: Fingerprint of the student's teacher; not checked if None.
        draws: How ``draw`` takes a batch: ``rows`` at random, or the rows of as few ``shards`` as hold it, for shards
            that are slow to read or make. If not given, rows for a local folder and shards for a URL.
        keep: Number of shards that are kept open; if not given, 1,024 of a folder, which are mapped, and 8 of a URL or
            of Parquet files, which are in memory.

    Raises:
        ValueError: The knots of ``num_steps`` were not recorded, the teacher is another, or a shard is missing or cut.
    """

    reads_ahead: bool = True
    """Whether a training may have its next batch read by a thread; not where reading is work for the model's device."""

    def __init__(
        self,
        folder: str | Path,
        num_steps: int | Sequence[int] | Knots,
        fingerprint: str | None = None,
        *,
        draws: Literal["rows", "shards"] | None = None,
        keep: int | None = None,
    ) -> None:
        self.store = store = Store(folder)
        self.manifest = manifest = Manifest.read(store)
        expected = Identity("", fingerprint or "")
        check_same_teacher(f"the trajectories in {folder}", expected, manifest, "record again")
        indices = knot_indices(manifest.knots, num_steps)
        if missing := [i for i in indices if i not in manifest.kept]:
            raise ValueError(
                f"{folder} lacks states {missing}, which {len(indices) - 1} steps need; record into a new folder with "
                f'--num_steps "[{manifest.solver_steps}]", which keeps all states'
            )
        if draws not in (None, "rows", "shards"):
            raise ValueError(f"unknown draws {draws!r}; known: rows, shards")
        self.knots = num_steps if isinstance(num_steps, Knots) else select_knots(manifest.knots, indices)
        self.draws = draws or ("rows" if store.folder is not None else "shards")
        self._stored_positions = np.array([manifest.kept.index(i) for i in indices])
        """Place of each knot's state among the stored states; denoised estimate i arrives at state i + 1."""
        self._files = open_shards(store, manifest)
        default = 1024 if isinstance(self._files, ShardFiles) and store.folder is not None else 8
        self._shards: LastUsed[Shard] = LastUsed(self._files, default if keep is None else keep)
        self._check_complete()

    def _check_complete(self) -> None:
        """Check that every file of the recording is there.

        Raises:
            ValueError: One is missing, or a shard is too small for its rows.
        """
        found, count = self._files.present(), self.manifest.num_shards
        places = [self._files.where(next(i for i in range(count) if i not in found))] if len(found) < count else []
        if self.manifest.prompts:
            sizes = self.store.sizes()
            names = [part.name for part in find_parts(sizes, self.manifest)[1][:1]]
            places += map(self.store.where, names + ([PROMPTS] if PROMPTS not in sizes else []))
        if places:
            raise ValueError(f"{places[0]} is missing; run the same record command again, it makes what is missing")

    def shard(self, shard: int) -> Shard:
        """A shard as it is stored. Its arrays stay valid as long as they are held, even once the shard is closed.

        Raises:
            ValueError: The shard is damaged, or belongs to another recording.
        """
        return self._shards(shard)

    @property
    def labels(self) -> Tensor:
        """Class, or number of the prompt, of each trajectory, (n,)."""
        return torch.arange(len(self), device="cpu") % self.manifest.num_conditions

    @property
    def guidance(self) -> Tensor:
        """Guidance scale of each trajectory, (n,)."""
        return torch.cat([self.manifest.guidance(shard) for shard in range(self.manifest.num_shards)])

    @cached_property
    def prompts(self) -> list[str]:
        """The distinct prompts, in the order of their numbers; empty for class labels."""
        return read_prompts(self.store, self.manifest)

    @cached_property
    def _table(self) -> ConditionTable | None:
        return open_conditions(self.store, self.manifest)

    @cached_property
    def _shapes(self) -> Tensor:
        """Index of the sample shape of each shard."""
        return torch.tensor([self.manifest.shape_of(shard) for shard in range(self.manifest.num_shards)], device="cpu")

    @cached_property
    def rows_by_shape(self) -> list[Tensor]:
        """Numbers of the trajectories, one tensor for each sample shape, in the order of ``sample_shapes``."""
        if len(self.manifest.sample_shapes) == 1:
            return [torch.arange(len(self), device="cpu")]
        shapes = self._shapes.repeat_interleave(self.manifest.shard_size)[: len(self)]
        return [torch.nonzero(shapes == i).flatten() for i in range(len(self.manifest.sample_shapes))]

    def student_config(
        self,
        history_layers: int = 6,
        *,
        mask: str = "M2",
        target: str = "state",
        output: str = "solver",
        gated: bool = True,
        lora_rank: int = 0,
        conditioning: Literal["recorded", "uniform"] = "recorded",
        expert: str = "",
    ) -> StudentConfig:
        """The configuration of a student of these trajectories: their knots and teacher, and what is chosen here.

        Args:
            history_layers: N: how many of the lowest layers attend to earlier steps; 0 is step distillation.
            mask: Which earlier steps they attend to: M1 none, M2 the previous one, M3 the first, M4 all.
            target: ``state``, ``denoised`` or ``anchored``; `StudentConfig` documents each.
            output: ``solver`` or ``direct``.
            gated: Whether a gate per layer, which starts closed, weighs the earlier steps.
            lora_rank: Rank of the adapters that are trained; 0: all weights are trained.
            conditioning: Times that the network is conditioned on: ``recorded``, or ``uniform`` (the authors' code).
            expert: Of a teacher of two transformers, the one whose part of the path the knots are: ``high_noise`` or
                ``low_noise``; `ardistill.teacher.expert_knots` gives them.

        Raises:
            ValueError: A value is unknown, or values do not fit together.
        """
        knots, facts = self.knots, self.manifest
        check_conditioning(conditioning)
        if expert and conditioning != "recorded":
            raise ValueError("an expert predicts at the recorded times; leave conditioning out")
        if conditioning == "uniform":
            knots = condition_uniformly(knots, facts.scheduler["num_train_timesteps"])
        return StudentConfig(
            knots=knots,
            history_layers=history_layers,
            mask=mask,
            target=target,
            output=output,
            gated=gated,
            teacher=facts.teacher,
            fingerprint=facts.fingerprint,
            guidance_range=facts.guidance_range,
            sample_shapes=facts.sample_shapes,
            lora_rank=lora_rank,
            expert=expert,
        )

    def condition(self, rows: slice | Tensor = slice(None)) -> Condition:
        """The condition of some trajectories, one row each."""
        indices = self._indices(rows)
        numbers, size = indices // self.manifest.shard_size, self.manifest.shard_size
        guidance = torch.full((len(indices),), self.manifest.guidance_range[0], dtype=torch.float32, device="cpu")
        if self.manifest.guidance_range[0] < self.manifest.guidance_range[1]:
            for shard in numbers.unique().tolist():
                at = numbers == shard
                guidance[at] = self.manifest.guidance(shard)[indices[at] - shard * size]
        return look_up(self._table, indices % self.manifest.num_conditions, guidance)

    def _indices(self, rows: slice | Tensor) -> Tensor:
        """Numbers of the selected trajectories, without indexing all numbers: 8 MB per batch for a million of them."""
        if isinstance(rows, slice):
            return torch.arange(*rows.indices(len(self)), device="cpu")
        numbers = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self):
            raise IndexError(f"expected trajectories in 0..{len(self) - 1}, got {numbers.tolist()[:5]}")
        return numbers

    @property
    def _fetches(self) -> bool:
        """Whether shards are fetched from elsewhere: neither mapped nor solved here."""
        return self.reads_ahead and self.store.folder is None

    def prefetch(self, upcoming: Iterable[Tensor]) -> None:
        """Begin to read from a remote store what batches need, as far as it is kept open; of a folder nothing is read.

        Args:
            upcoming: Numbers of the trajectories of each batch, in the order in which `batch` will be called.
        """
        if not self._fetches:
            return
        shards: set[int] = set()
        for rows in upcoming:
            shards.update((rows // self.manifest.shard_size).tolist())
            if len(shards) > self._shards.keep:
                return
            for shard in sorted(shards):
                self._shards.begin(shard)
            if self._table is not None:
                self._table.begin(rows % self.manifest.num_conditions)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw random trajectories of one sample shape; a shape is drawn as often as it was recorded.

        By ``rows``: with replacement. By ``shards``: from as few random shards as hold ``count`` rows; no row is
        repeated before all have been drawn.

        Returns:
            Their numbers, (count,).
        """
        if self.draws == "shards":
            return self._draw_shards(count, generator)
        rows = torch.randint(len(self), (count,), generator=generator, device="cpu")
        if len(self.manifest.sample_shapes) == 1:
            return rows
        same = self.rows_by_shape[int(self._shapes[rows[0] // self.manifest.shard_size])]
        return same[torch.randint(len(same), (count,), generator=generator, device="cpu")]

    def _draw_shards(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` rows from as few random shards of one sample shape as hold them.

        The limit of open shards rises to the number of shards of a batch, so that no shard is read twice for a batch,
        and of a remote store to those of `_BATCHES_AHEAD` batches, which are fetched before they are needed.
        """
        order = torch.randperm(self.manifest.num_shards, generator=generator, device="cpu")
        same = order[self._shapes[order] == self._shapes[order[0]]].tolist()
        parts: list[Tensor] = []
        while sum(map(len, parts)) < count:
            shard = same[len(parts) % len(same)]
            parts.append(shard * self.manifest.shard_size + torch.arange(self.manifest.num_rows(shard), device="cpu"))
        wanted = len(parts) * (_BATCHES_AHEAD if self._fetches else 1)
        self._shards.keep = max(self._shards.keep, min(wanted, len(same)))
        rows = torch.cat(parts)
        return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:count]]

    def stacked(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor, Condition]:
        """Some trajectories in memory: states (n, s + 1, c, h, w), denoised (n, s, c, h, w), condition.

        Raises:
            ValueError: They have several sample shapes.
        """
        indices = self._indices(rows)
        if len(self._shapes[indices // self.manifest.shard_size].unique()) > 1:
            raise ValueError(
                f"expected trajectories of one size, got {self.manifest.sample_shapes}; record some of one size apart"
            )
        batch = self.batch(indices)
        return batch["states"], batch["denoised"], batch["condition"]

    def batch(self, rows: Tensor) -> dict[str, Any]:
        """Read trajectories of one sample shape at once; equal to ``default_collate`` of the items."""
        shards, places = rows // self.manifest.shard_size, rows % self.manifest.shard_size
        shape = self.manifest.sample_shapes[int(self._shapes[shards[0]])]
        kept = self._stored_positions
        dtype, steps = DTYPES[self.manifest.dtype], len(kept) - 1
        states = np.empty((len(rows), steps + 1, *shape), dtype)
        denoised = np.empty((len(rows), steps, *shape), dtype)
        self.prefetch([rows])
        order = shards.argsort(stable=True)  # no shard is opened twice, however few are kept
        for i, shard, row in zip(order.tolist(), shards[order].tolist(), places[order].tolist(), strict=True):
            part = self.shard(shard)
            part.states[row].take(kept, 0, out=states[i], mode="clip")  # clip avoids a copy in between
            part.denoised[row].take(kept[1:] - 1, 0, out=denoised[i], mode="clip")
        found = {"states": states, "denoised": denoised}
        tensors = {name: torch.from_numpy(x.astype(np.float32, copy=False)) for name, x in found.items()}
        return {**tensors, "condition": self.condition(rows)}

    def __len__(self) -> int:
        return self.manifest.num_trajectories

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a trajectory in 0..{len(self) - 1}, got {index}")
        number, row = divmod(index, self.manifest.shard_size)
        shard = self.shard(number)
        states = shard.states[row].take(self._stored_positions, 0)
        denoised = shard.denoised[row].take(self._stored_positions[1:] - 1, 0)
        labels, guidance = torch.tensor([int(shard.labels[row])]), torch.tensor([float(shard.guidance[row])])
        condition = look_up(self._table, labels, guidance)
        return {
            "states": torch.from_numpy(states.astype(np.float32, copy=False)),
            "denoised": torch.from_numpy(denoised.astype(np.float32, copy=False)),
            "condition": {name: value[0] for name, value in condition.items()},
        }
