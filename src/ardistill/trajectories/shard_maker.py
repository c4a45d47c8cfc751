"""Shards of a recording, made by solving the teacher's ODE."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from ardistill.core.attach import compile_blocks
from ardistill.devices import compiles, precision
from ardistill.families import Condition
from ardistill.files import Store
from ardistill.progress import bar as progress_bar
from ardistill.progress import tell_compiled
from ardistill.teacher import Identity, Teacher, check_same_teacher
from ardistill.trajectories.batch_size import rows_at_once
from ardistill.trajectories.conditions import (
    ConditionTable,
    look_up,
    open_conditions,
    publish_conditions,
    read_prompts,
)
from ardistill.trajectories.knots import select_knots
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shard_writer import ShardWriter
from ardistill.trajectories.shards import Shard, make_shard
from ardistill.trajectories.sharing import choose
from ardistill.trajectories.transfers import Transfers

BatchSize = int | Literal["auto"]
"""Rows of a shard that are solved at once: a number, or as many as the device's memory takes."""


class ShardMaker:
    """Solves shards of a recording; results are equal on one kind of hardware, and nearly equal on others.

    Args:
        teacher: The recording's teacher.
        manifest: The recording's manifest.
        table: Embeddings of its prompts; None for class labels.
        device: Where the teacher runs.
        batch_size: Rows that are solved at once. ``"auto"`` is measured on CUDA with the first shard; elsewhere it is
            the whole shard.
        compile: Compile the blocks of the teacher's transformer at the first shard.

    Raises:
        ValueError: The teacher, the type of its weights, its guided channels or its negative prompt are not the
            recorded ones.
    """

    def __init__(
        self,
        teacher: Teacher,
        manifest: Manifest,
        table: ConditionTable | None,
        device: torch.device | str,
        batch_size: BatchSize = "auto",
        compile: bool = False,
    ) -> None:
        check_same_teacher("these trajectories", manifest, teacher, "give the recording's teacher")
        for name, given, recorded in (
            ("weights", teacher.weights, manifest.weights),
            ("guidance_channels", teacher.guidance_channels, manifest.guidance_channels),
            ("negative_prompt", teacher.negative_prompt, manifest.negative_prompt),
        ):
            if given != recorded:
                raise ValueError(
                    f"expected the teacher that was recorded, {Identity.of(manifest)}, with {name} {recorded!r}, got "
                    f"{given!r}; make it with the recorded value"
                )
        self.teacher, self.manifest, self.table = teacher, manifest, table
        self.device = torch.device(device)
        self.batch_size = batch_size if batch_size != "auto" or self.device.type == "cuda" else manifest.shard_size
        self._compiles = compile
        self._transfers = Transfers(self.device)
        if teacher.takes_text and manifest.guidance_range[1] > 1 and not teacher.embeds_guidance:
            teacher.encode_negative(device)  # now: text encoders and transformer may not fit on the device together

    def __call__(self, shard: int) -> Shard:
        """Solve a shard's trajectories.

        Raises:
            ValueError: A state is not finite in the recording's dtype.
        """
        return self.solve(shard)()

    def solve(self, shard: int) -> Callable[[], Shard]:
        """Solve a shard's trajectories; on CUDA, the work is queued and is not waited for.

        Returns:
            A function for any thread, which waits for the states and converts them to the stored dtype. It raises a
            ValueError if a state is not finite in that dtype.
        """
        manifest, layout = self.manifest, self.manifest.layout(shard)
        self.teacher.to(self.device)
        if self.batch_size == "auto":
            self.batch_size = self._measure()
        if self._compiles:  # after the measurement, of which each size would be compiled
            compile_blocks(self.teacher.transformer)
            self._compiles = False
        noise, condition = self._inputs(shard)
        states, denoised = [], []
        for first in range(0, layout.rows, self.batch_size):
            rows = slice(first, first + self.batch_size)
            found = self._solve_rows(noise[rows], {name: value[rows] for name, value in condition.items()})
            states.append(found[0])
            denoised.append(found[1])
        arrived = self._transfers.mark()

        def finish() -> Shard:
            arrived()
            labels, guidance = manifest.labels(shard), manifest.guidance(shard)
            return make_shard(layout, _joined(states), _joined(denoised), labels, guidance)

        return finish

    def _solve_rows(self, noise: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Kept states and denoised estimates of some rows, on their way to the host."""
        kept, pin, to_host = self.manifest.kept, self._transfers.pin, self._transfers.to_host
        with self._precision():
            pinned = {name: pin(value) for name, value in condition.items()}
            solved = self.teacher.solve_ode(pin(noise), pinned, self.manifest.knots)
        states = torch.stack([solved.states[:, i] for i in kept], 1)
        denoised = torch.stack([solved.denoised[:, i - 1] for i in kept[1:]], 1)
        return to_host(states), to_host(denoised)

    def _inputs(self, shard: int) -> tuple[Tensor, Condition]:
        """Noise and condition of a shard's rows, on the host."""
        layout = self.manifest.layout(shard)
        noise = self.teacher.noise(self.manifest.seed, shard, layout.rows, layout.sample_shape)
        return noise, look_up(self.table, self.manifest.labels(shard), self.manifest.guidance(shard))

    def _precision(self) -> AbstractContextManager[None]:
        return precision(self.manifest.mixed_precision, self.teacher.transformer)

    def _measure(self) -> int:
        """Number of rows to solve at once, measured with a shard of the largest shape."""
        manifest = self.manifest
        first = range(min(manifest.num_shards, len(manifest.sample_shapes)))  # each of them has a shape of its own
        shard = max(first, key=lambda i: math.prod(manifest.layout(i).sample_shape))
        return rows_at_once(self.one_step(shard), self.device, manifest.num_rows(shard))

    def one_step(self, shard: int) -> Callable[[int], None]:
        """A function that solves the first step of a shard's first rows, with as much memory as the whole solve takes.

        Args:
            shard: Number of the shard.
        """
        noise, condition = self._inputs(shard)
        knots = select_knots(self.manifest.knots, (0, 1))

        def attempt(rows: int) -> None:
            some = {name: value[:rows] for name, value in condition.items()}
            # The solver's list of states and denoised estimates, its stacks of them, and those that are kept.
            count = 3 * (2 * self.manifest.solver_steps + 1) * noise[:rows].numel()
            held = torch.empty(count, dtype=torch.float32, device=self.device)
            with self._precision():
                self.teacher.solve_ode(noise[:rows], some, knots)
            del held

        return attempt


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def make_missing(
    store: Store,
    manifest: Manifest,
    teacher: Teacher,
    device: torch.device | str,
    progress: bool = True,
    batch_size: BatchSize = "auto",
    compile: bool | None = None,
) -> None:
    """Make and publish shards until all are there, whichever process makes them. While one is written, the next one is
    solved.

    Raises:
        ValueError: A state is not finite, the store cannot be written, or another recording began in it.
    """
    every = set(range(manifest.num_shards))
    missing = every - manifest.present(store)
    bar = progress_bar(total=len(every), desc="record", unit="shard", disable=not progress)
    bar.update(len(every) - len(missing))
    compiled = compiles(compile, torch.device(device), len(missing) * manifest.solver_steps)
    options, began = (device, batch_size, compiled), time.time()
    make = ShardMaker(teacher, manifest, open_conditions(store, manifest), *options) if missing else None
    with ShardWriter(store) as writer:
        while missing or writer.is_writing:
            shard, finish = -1, None
            if missing and make is not None:
                shard = choose(sorted(missing), int)
                if store.exists(shard_name(shard)):
                    missing &= every - manifest.present(store)
                else:
                    finish = make.solve(shard)
                    if compiled and progress and began:
                        tell_compiled(began, "shard")
                        began = 0.0
            found = writer.wait() if finish is not None or not missing else None
            if found is not None and found != manifest:  # another process added trajectories: help it
                if finish is not None and found.num_rows(shard) != manifest.num_rows(shard):
                    finish = None
                manifest = found
                if manifest.prompts:  # the added trajectories may use more of them
                    publish_conditions(store, manifest, teacher, read_prompts(store, manifest), device, progress)
                make = ShardMaker(teacher, manifest, open_conditions(store, manifest), *options)
                every = set(range(manifest.num_shards))
                missing, bar.total = every - manifest.present(store), len(every)
            if finish is not None:
                writer.begin(manifest, shard, finish)
                missing.discard(shard)
            bar.update(len(every) - len(missing) - writer.is_writing - bar.n)
    bar.close()
    store.sweep()
