"""Trajectories: recorded in shards by any number of processes, read from a folder or bucket, or made when needed.

A shard is a pure function of (seed, shard number): any process can make it or make it again, none waits for another.
Each is published whole with its checksum inside; recording into the same folder again makes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ardistill.core.config import StudentConfig
from ardistill.core.knots import Knots
from ardistill.devices import Device, resolve_device
from ardistill.families import Condition
from ardistill.files.store import Store
from ardistill.progress import bar as progress_bar
from ardistill.teacher import Teacher
from ardistill.trajectories.conditions import ConditionTable, find_parts, look_up, open_conditions, publish_conditions
from ardistill.trajectories.knots import (
    check_conditioning,
    condition_uniformly,
    knot_indices,
    nested_indices,
    select_knots,
)
from ardistill.trajectories.manifest import MANIFEST, PROMPTS, Manifest, shard_name
from ardistill.trajectories.prompts import distinct_prompts
from ardistill.trajectories.shards import (
    DTYPES,
    Shard,
    decode_shard,
    encode_shard,
    find_columns,
    make_shard,
    view_shard,
)


def record(
    teacher: Teacher,
    folder: str | Path,
    num_trajectories: int,
    *,
    prompts: Sequence[str] | None = None,
    guidance_range: tuple[float, float] | None = None,
    sample_shapes: Sequence[tuple[int, ...]] = (),
    solver_steps: int = 24,
    num_steps: Sequence[int] = (1, 2, 3, 4, 6, 8),
    seed: int = 0,
    shard_size: int = 256,
    mixed_precision: str = "no",
    dtype: str = "float32",
    manifest_only: bool = False,
    device: Device = None,
    progress: bool = True,
) -> Manifest:
    """Solve the teacher's ODE from seeded noise, with balanced labels, and keep what students of ``num_steps`` need.

    Shards that are there already are not made again; with a larger ``num_trajectories`` those that are missing are
    added, equal to what a recording of so many would have held from the start.

    Any number of processes may record into one folder at a time, alike but for ``device`` and ``progress``: those of
    ``accelerate launch`` (RANK and WORLD_SIZE in the environment) take every so many-th shard and then help the others,
    processes of their own take any that is missing. Each returns once all shards are there. If one adds trajectories
    meanwhile, the others help it.

    Args:
        teacher: Solved as it is, with its guidance.
        folder: Path, or URL of fsspec. Made if missing; must be empty or hold a part of the same recording.
        num_trajectories: The last shard may be smaller; it is made anew where trajectories are added.
        prompts: For a teacher that takes text, used in turn; encoded once each and stored beside the shards.
        guidance_range: Guidance scales are drawn from it, uniformly, for students that are told of the scale; the
            teacher's own scale for all if not given.
        sample_shapes: Of the latents, one a shard; the teacher's own if not given. The solver's times are those of the
            teacher's own, where the schedule depends on the size.
        solver_steps: Steps of the ODE solver.
        num_steps: Step counts of the students to come; states nearest to their uniform knots are kept.
        seed: Of the noise; the labels follow the row number.
        shard_size: Rows solved, written and read together.
        mixed_precision: no, or bf16: matrix products in bfloat16, the solver's states in float32.
        dtype: What states are stored in, float32 or float16; solved in float32, read as float32.
        manifest_only: Leave the shards out: for ``OnlineTrajectories``.
        device: Where the teacher is moved to and runs; where it is if not given.
        progress: Show a bar.

    Raises:
        ValueError: The folder holds other trajectories or cannot be written, more student steps than solver steps are
            asked for, there are fewer shards than shapes, or prompts are missing or of no use.
    """
    if teacher.takes_text and (prompts is None or not len(prompts)):
        raise ValueError(f"{teacher.name or 'the teacher'} is conditioned on text: give it prompts")
    if prompts is not None and len(prompts) and not teacher.takes_text:
        raise ValueError(f"{teacher.name or 'the teacher'} is conditioned on class labels: leave the prompts out")
    distinct = distinct_prompts(() if prompts is None else prompts)
    for what, value in (("trajectory", num_trajectories), ("row per shard", shard_size)):
        if not 1 <= value < 10**12:
            raise ValueError(f"expected 1 {what} or more, got {value}; take a number below 10^12")
    if not num_steps:
        raise ValueError("expected num_steps of one student or more, got none: nothing would be kept")
    where = resolve_device(device, teacher.device)
    if mixed_precision not in ("no", "bf16"):
        raise ValueError(f"unknown mixed_precision {mixed_precision!r}; known: no, bf16")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    low, high = guidance_range or (teacher.guidance_scale, teacher.guidance_scale)
    if not 1 <= low <= high < math.inf:
        raise ValueError(f"expected guidance scales from 1 (none) up, lowest first, got {(low, high)}")
    manifest = Manifest(
        teacher=teacher.name,
        fingerprint=teacher.fingerprint(),
        scheduler=json.loads(teacher.scheduler.to_json_string()),
        solver_steps=solver_steps,
        kept=tuple(sorted({i for n in num_steps for i in nested_indices(solver_steps, n)})),
        knots=teacher.knots(solver_steps),
        guidance_range=(float(low), float(high)),
        guidance_channels=teacher.guidance_channels,
        sample_shapes=tuple(tuple(shape) for shape in sample_shapes) or (tuple(teacher.sample_shape),),
        num_conditions=len(distinct) if teacher.takes_text else teacher.num_classes,
        prompts=hashlib.sha256(json.dumps(distinct).encode()).hexdigest() if teacher.takes_text else "",
        negative_prompt=teacher.negative_prompt,
        mixed_precision=mixed_precision,
        dtype=dtype,
        seed=seed,
        num_trajectories=num_trajectories,
        shard_size=shard_size,
    )
    if manifest.num_shards < len(manifest.sample_shapes):
        raise ValueError(
            f"expected {len(manifest.sample_shapes)} shards or more, one of each size, got {manifest.num_shards}; "
            "lower the shard size or record more"
        )
    store = Store(folder)
    manifest = _claim(store, manifest)
    if teacher.takes_text:
        publish_conditions(store, manifest, teacher, distinct, where, progress)
    if not manifest_only:
        make_missing(store, manifest, teacher, where, progress)
    return manifest


def _claim(store: Store, manifest: Manifest) -> Manifest:
    """Publish the manifest, or see that the folder is this very recording's and add trajectories if it has fewer.

    Raises:
        ValueError: It is another recording's, which differs in what the error says, or has more trajectories.
    """
    if not store.exists(MANIFEST):
        there = store.sizes()
        if there and not store.exists(MANIFEST):
            known = [x for x in (manifest, manifest.as_version_3()) if _left_of(store, x, set(there))]
            if not known:
                raise ValueError(f"expected {store} to be empty or to hold this recording; choose a new folder")
            manifest = known[0]
        manifest.publish(store)
    found = Manifest.read(store)
    differing = manifest.differences(found)
    if not differing and manifest.num_trajectories > found.num_trajectories:
        return _extend(store, found, manifest.num_trajectories)
    if manifest.num_trajectories < found.num_trajectories:
        differing.append(
            f"num_trajectories is {found.num_trajectories} there, {manifest.num_trajectories} asked for: some can be "
            "added, none taken away"
        )
    if differing:
        raise ValueError(
            f"{store} holds other trajectories than those asked for ({'; '.join(differing)}); choose a new folder, or "
            "repeat its own settings"
        )
    return found


def _extend(store: Store, found: Manifest, num_trajectories: int) -> Manifest:
    """Publish a manifest of more trajectories. A last shard that was smaller is made anew with all its rows.

    It is deleted before the new manifest is published, so that a kill in between leaves one that is missing, not one
    that is short; and after it, as another process may have published it meanwhile by the old manifest.
    """
    grown, last = replace(found, num_trajectories=num_trajectories), found.num_shards - 1
    is_short = found.num_rows(last) < grown.num_rows(last)
    if is_short:
        store.delete(shard_name(last))
    grown.publish(store)
    if is_short:
        store.delete(shard_name(last))
    return grown


def _grown(store: Store, manifest: Manifest) -> Manifest:
    """The manifest as it is now: another process may have added trajectories.

    If two did at once, the manifest published last stands, perhaps that of fewer: then ``manifest``'s are added again.

    Raises:
        ValueError: Another recording began in the store.
    """
    found = Manifest.read(store)
    if found.recording != manifest.recording:
        raise ValueError(f"another recording began in {store} meanwhile; choose a new folder for one of them")
    if found.num_trajectories < manifest.num_trajectories:
        return _extend(store, found, manifest.num_trajectories)
    return found


def _left_of(store: Store, manifest: Manifest, names: set[str]) -> bool:
    """Whether a folder without a manifest holds this recording: its shards know."""
    shards = [shard for shard in range(manifest.num_shards) if shard_name(shard) in names]
    try:
        for shard in shards[:1]:
            decode_shard(manifest.layout(shard), store.read(shard_name(shard)), store.where(shard_name(shard)))
    except ValueError:
        return False
    return bool(shards)


def read_prompts(store: Store, manifest: Manifest) -> list[str]:
    """The distinct prompts; none of a teacher of class labels.

    Raises:
        ValueError: They are missing, or not those that were recorded.
    """
    if not manifest.prompts:
        return []
    where, raw = store.where(PROMPTS), bytes(store.read(PROMPTS))
    try:
        found = json.loads(raw)
        intact = hashlib.sha256(json.dumps(found).encode()).hexdigest() == manifest.prompts
    except ValueError:
        intact = False
    if not intact:
        raise ValueError(
            f"{where} does not hold the prompts that were recorded; delete it and all files conditions*, record again"
        )
    return list(found)


class ShardMaker:
    """Solves whole shards of a recording; equal on one kind of hardware, nearly so on another.

    Args:
        teacher: Of the manifest.
        manifest: Of the recording.
        table: Embeddings of its prompts, if it has prompts.
        device: Where the teacher runs.

    Raises:
        ValueError: The teacher, its guidance or its negative prompt are others.
    """

    def __init__(
        self, teacher: Teacher, manifest: Manifest, table: ConditionTable | None, device: torch.device | str
    ) -> None:
        for name, ours, theirs in (
            ("weights", teacher.fingerprint()[:12], manifest.fingerprint[:12]),
            ("guidance_channels", teacher.guidance_channels, manifest.guidance_channels),
            ("negative_prompt", teacher.negative_prompt, manifest.negative_prompt),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the teacher is not the recording's, {manifest.teacher or 'unnamed'}: its {name} are {ours!r}, "
                    f"recorded were {theirs!r}"
                )
        self.teacher, self.manifest, self.table = teacher, manifest, table
        self.device = torch.device(device)
        if teacher.takes_text and manifest.guidance_range[1] > 1 and not teacher.embeds_guidance:
            teacher.encode_negative(device)  # now: the text encoders may not fit beside the transformer

    def __call__(self, shard: int) -> Shard:
        """What a shard holds."""
        manifest, teacher = self.manifest, self.teacher.to(self.device)
        layout, labels, guidance = manifest.layout(shard), manifest.labels(shard), manifest.guidance(shard)
        noise = teacher.noise(manifest.seed, shard, layout.rows, layout.sample_shape)
        condition = {name: x.to(self.device) for name, x in look_up(self.table, labels, guidance).items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=manifest.mixed_precision == "bf16"):
            solved = teacher.solve_ode(noise.to(self.device), condition, manifest.knots)
        states = solved.states[:, list(manifest.kept)].cpu()
        denoised = solved.denoised[:, [i - 1 for i in manifest.kept[1:]]].cpu()
        return make_shard(layout, states, denoised, labels, guidance)


def make_missing(
    store: Store, manifest: Manifest, teacher: Teacher, device: torch.device | str, progress: bool = True
) -> None:
    """Make and publish shards until all are there, whoever makes them.

    Raises:
        ValueError: The store cannot be written, or another recording began in it.
    """
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    chance = random.SystemRandom()
    every = set(range(manifest.num_shards))
    missing = every - manifest.present(store)
    bar = progress_bar(total=len(every), desc="record", unit="shard", disable=not progress)
    bar.update(len(every) - len(missing))
    make = ShardMaker(teacher, manifest, open_conditions(store, manifest), device) if missing else None
    while missing and make is not None:
        # Own ones first, then another's: by chance, so that two helpers seldom meet. If they do, the last publish wins.
        own = [shard for shard in missing if shard % world_size == rank] if world_size > 1 else []
        shard = min(own) if own else chance.choice(sorted(missing))
        if store.exists(shard_name(shard)):
            missing &= every - manifest.present(store)
        else:
            data = encode_shard(manifest.layout(shard), make(shard))
            _grown(store, manifest)
            store.publish(shard_name(shard), data)
            missing.discard(shard)
            grown = _grown(store, manifest)
            if grown != manifest:  # another process adds trajectories: helped, as any other
                if grown.num_rows(shard) != manifest.num_rows(shard):
                    store.delete(shard_name(shard))
                manifest = grown
                if manifest.prompts:  # more of them may be used now
                    publish_conditions(store, manifest, teacher, read_prompts(store, manifest), device, progress)
                make = ShardMaker(teacher, manifest, open_conditions(store, manifest), device)
                every = set(range(manifest.num_shards))
                missing, bar.total = every - manifest.present(store), len(every)
        bar.update(len(every) - len(missing) - bar.n)
    bar.close()
    store.sweep()


class TrajectoryDataset(Dataset):
    """Recorded trajectories as one student needs them: mapped from a folder, or streamed from any URL of fsspec.

    Item i is a dict of ``states`` (s + 1, c, h, w), ``denoised`` (s, c, h, w) and ``condition``, itself a dict, with
    the guidance scale in it; all in float32. Opening reads names and sizes alone; a shard's checksum is checked when it
    is first touched.

    Args:
        folder: What ``record`` wrote: a path or URL.
        num_steps: Steps of the student, uniform; or which of the solver's states they run between; or its knots.
        fingerprint: Of the student's teacher; None: not checked.
        draws: How ``draw`` takes a batch: of any ``rows``, or of as few ``shards`` as hold it, for what is read or made
            a shard at a time. Rows for a local folder, else shards, if not given.
        keep: Shards that are held open, the last ones used. 1,024 of a folder, mapped; 8 of a URL, whole in memory.

    Raises:
        ValueError: The knots of ``num_steps`` were not recorded, the teacher is another, or a shard is missing or cut.
    """

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
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            raise ValueError(
                f"{folder} was recorded from another teacher ({manifest.teacher or 'unnamed'}, weights "
                f"{manifest.fingerprint[:12]}), the student's is {fingerprint[:12]}; record again"
            )
        indices = knot_indices(manifest.knots, num_steps)
        if missing := [i for i in indices if i not in manifest.kept]:
            raise ValueError(f"{folder} lacks states {missing}, which {len(indices) - 1} steps need; record them")
        if draws not in (None, "rows", "shards"):
            raise ValueError(f"unknown draws {draws!r}; known: rows, shards")
        self.knots = select_knots(manifest.knots, indices)
        self.draws = draws or self._default_draws()
        self._at = np.array([manifest.kept.index(i) for i in indices])
        self._keep = keep if keep is not None else 8 if store.folder is None else 1024
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._known = np.zeros((manifest.num_shards, 7), np.int64)  # of checked files: starts of 4 columns, the stamp
        self._open()

    def _default_draws(self) -> Literal["rows", "shards"]:
        return "rows" if self.store.folder is not None else "shards"

    def _open(self) -> None:
        """See that all is there."""
        found, count = self.manifest.present(self.store), self.manifest.num_shards
        names = [shard_name(next(i for i in range(count) if i not in found))] if len(found) < count else []
        if self.manifest.prompts:
            sizes = self.store.sizes()
            names += [part.name for part in find_parts(sizes, self.manifest)[1][:1]]
            names += [PROMPTS] if PROMPTS not in sizes else []
        if names:
            raise ValueError(
                f"{self.store.where(names[0])} is missing; run the same record command again, it makes what is missing"
            )

    def _load(self, shard: int) -> Shard:
        name, layout, known = shard_name(shard), self.manifest.layout(shard), self._known[shard]
        stamp, data, where = self.store.stamp(name), self.store.read(name), self.store.where(name)
        if stamp is not None and tuple(known[4:]) == stamp:
            return view_shard(layout, data, known[:4])
        starts = find_columns(layout, data, where)
        found = view_shard(layout, data, starts)
        labels, guidance = self.manifest.labels(shard).numpy(), self.manifest.guidance(shard).numpy()
        if not (np.array_equal(found.labels, labels) and np.allclose(found.guidance, guidance, rtol=1e-6)):
            raise ValueError(
                f"{where}: labels or guidance are not what the manifest says; `ardistill trajectories repair` makes it "
                "again"
            )
        if stamp is not None:
            known[:] = (*starts, *stamp)
        return found

    def shard(self, shard: int) -> Shard:
        """A shard as it is stored. The last few stay open; what was read of others stays valid as long as it is held.

        Raises:
            ValueError: It is broken, or of another recording.
        """
        found = self._shards.pop(shard, None)  # each call here is atomic: threads may load twice, and lose nothing
        if found is None:
            found = self._load(shard)
        self._shards[shard] = found
        while len(self._shards) > self._keep:
            with suppress(KeyError):
                self._shards.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are started anew: each opens and checks its own shards."""
        return self.__dict__ | {"_shards": OrderedDict(), "_known": np.zeros_like(self._known)}

    @property
    def labels(self) -> Tensor:
        """Class, or number of the prompt, of each trajectory."""
        return torch.arange(len(self), device="cpu") % self.manifest.num_conditions

    @property
    def guidance(self) -> Tensor:
        """Guidance scale of each trajectory."""
        return torch.cat([self.manifest.guidance(shard) for shard in range(self.manifest.num_shards)])

    @cached_property
    def prompts(self) -> list[str]:
        """The distinct prompts, in the order of their numbers."""
        return read_prompts(self.store, self.manifest)

    @cached_property
    def _table(self) -> ConditionTable | None:
        return open_conditions(self.store, self.manifest)

    @cached_property
    def _shapes(self) -> Tensor:
        """Which of the sample shapes each shard has."""
        return torch.tensor([self.manifest.shape_of(shard) for shard in range(self.manifest.num_shards)], device="cpu")

    @cached_property
    def buckets(self) -> list[Tensor]:
        """Trajectories of each sample shape."""
        if len(self.manifest.sample_shapes) == 1:
            return [torch.arange(len(self), device="cpu")]
        shapes = self._shapes.repeat_interleave(self.manifest.shard_size)[: len(self)]
        return [torch.nonzero(shapes == i).flatten() for i in range(len(self.manifest.sample_shapes))]

    def student_config(
        self,
        history_layers: int = 6,
        *,
        mask: str = "M4",
        target: str = "state",
        output: str = "solver",
        gated: bool = True,
        lora_rank: int = 0,
        conditioning: Literal["recorded", "uniform"] = "recorded",
    ) -> StudentConfig:
        """The configuration of a student of these trajectories: its knots, its teacher and what is chosen here.

        Args:
            history_layers: N: how many of the lowest layers see earlier steps; 0 is step distillation.
            mask: Which earlier steps they see: M1 none, M2 the one before, M3 the noise, M4 all.
            target: ``state``, ``denoised`` or ``anchored``; `StudentConfig` documents each.
            output: ``solver`` or ``direct``.
            gated: Whether earlier steps are seen through a gate per layer that starts closed.
            lora_rank: Rank of the adapters that are trained; 0: all weights are trained.
            conditioning: Times that the network is conditioned on: ``recorded``, or ``uniform``, as the authors do.

        Raises:
            ValueError: A value is not known, or the values do not go together.
        """
        knots, facts = self.knots, self.manifest
        check_conditioning(conditioning)
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
        )

    def condition(self, rows: slice | Tensor = slice(None)) -> Condition:
        """Of some trajectories, one row each."""
        indices = self._indices(rows)
        numbers, size = indices // self.manifest.shard_size, self.manifest.shard_size
        guidance = torch.full((len(indices),), self.manifest.guidance_range[0], dtype=torch.float32, device="cpu")
        if self.manifest.guidance_range[0] < self.manifest.guidance_range[1]:
            for shard in numbers.unique().tolist():
                at = numbers == shard
                guidance[at] = self.manifest.guidance(shard)[indices[at] - shard * size]
        return look_up(self._table, indices % self.manifest.num_conditions, guidance)

    def _indices(self, rows: slice | Tensor) -> Tensor:
        """Numbers of trajectories. Not by indexing all of them: 8 MB a batch of a million, and a heap full of holes."""
        if isinstance(rows, slice):
            return torch.arange(*rows.indices(len(self)), device="cpu")
        numbers = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self):
            raise IndexError(f"expected trajectories in 0..{len(self) - 1}, got {numbers.tolist()[:5]}")
        return numbers

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random trajectories of one sample shape, (count,); a shape comes as often as it was recorded.

        Of any rows, with replacement; or of as few random shards as hold so many, no row twice as far as they last.
        """
        if self.draws == "shards":
            return self._draw_shards(count, generator)
        rows = torch.randint(len(self), (count,), generator=generator, device="cpu")
        if len(self.manifest.sample_shapes) == 1:
            return rows
        same = self.buckets[int(self._shapes[rows[0] // self.manifest.shard_size])]
        return same[torch.randint(len(same), (count,), generator=generator, device="cpu")]

    def _draw_shards(self, count: int, generator: torch.Generator) -> Tensor:
        order = torch.randperm(self.manifest.num_shards, generator=generator, device="cpu")
        same = order[self._shapes[order] == self._shapes[order[0]]].tolist()
        parts: list[Tensor] = []
        while sum(map(len, parts)) < count:
            shard = same[len(parts) % len(same)]
            parts.append(shard * self.manifest.shard_size + torch.arange(self.manifest.num_rows(shard), device="cpu"))
        self._keep = max(self._keep, min(len(parts), len(same)))
        rows = torch.cat(parts)
        return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:count]]

    def stacked(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor, Condition]:
        """Some of it in memory: states (n, s + 1, c, h, w), denoised (n, s, c, h, w), condition.

        Raises:
            ValueError: They are of several shapes.
        """
        indices = self._indices(rows)
        if len(self._shapes[indices // self.manifest.shard_size].unique()) > 1:
            raise ValueError(
                f"expected trajectories of one size, got {self.manifest.sample_shapes}; record some of one size apart"
            )
        batch = self.batch(indices)
        return batch["states"], batch["denoised"], batch["condition"]

    def batch(self, rows: Tensor) -> dict[str, Any]:
        """Trajectories of one sample shape, as ``default_collate`` of the items, but at once."""
        shards, places = rows // self.manifest.shard_size, rows % self.manifest.shard_size
        shape = self.manifest.sample_shapes[int(self._shapes[shards[0]])]
        dtype, steps = DTYPES[self.manifest.dtype], len(self._at) - 1
        states = np.empty((len(rows), steps + 1, *shape), dtype)
        denoised = np.empty((len(rows), steps, *shape), dtype)
        for i, (shard, row) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            part = self.shard(shard)
            part.states[row].take(self._at, 0, out=states[i], mode="clip")  # clip: without a copy in between
            part.denoised[row].take(self._at[1:] - 1, 0, out=denoised[i], mode="clip")
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
        states, denoised = shard.states[row].take(self._at, 0), shard.denoised[row].take(self._at[1:] - 1, 0)
        labels, guidance = torch.tensor([int(shard.labels[row])]), torch.tensor([float(shard.guidance[row])])
        condition = look_up(self._table, labels, guidance)
        return {
            "states": torch.from_numpy(states.astype(np.float32, copy=False)),
            "denoised": torch.from_numpy(denoised.astype(np.float32, copy=False)),
            "condition": {name: value[0] for name, value in condition.items()},
        }


class OnlineTrajectories(TrajectoryDataset):
    """The trajectories of a manifest, made as they are needed, bit-equal to what the same machine would record.

    A shard is solved whole, as it would be recorded, and forgotten: let ``shard_size`` be the batch size, and batches
    be drawn of shards, so that nothing is solved for nothing.

    Args:
        folder: What ``record`` wrote, with or without its shards; they are not read.
        num_steps: As in ``TrajectoryDataset``.
        teacher: Of the recording.
        device: Where it is moved to and runs; where it is if not given.
        draws: As in ``TrajectoryDataset``; shards if not given.

    Raises:
        ValueError: The teacher is another, or its prompts are missing.
    """

    def __init__(
        self,
        folder: str | Path,
        num_steps: int | Sequence[int] | Knots,
        teacher: Teacher,
        device: Device = None,
        *,
        draws: Literal["rows", "shards"] | None = None,
    ) -> None:
        super().__init__(folder, num_steps, teacher.fingerprint(), draws=draws, keep=1)
        where = resolve_device(device, teacher.device)
        self._make = ShardMaker(teacher, self.manifest, self._table, where)

    def _default_draws(self) -> Literal["rows", "shards"]:
        return "shards"

    def _open(self) -> None:
        pass  # shards are not needed, and the prompts are read at once

    def _load(self, shard: int) -> Shard:
        return self._make(shard)
