"""What there is of a recording, whether it is whole, making again what is not, and its export as Parquet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ardistill.devices import Device, resolve_device
from ardistill.files.store import Store
from ardistill.progress import bar as progress_bar
from ardistill.teacher import Teacher
from ardistill.trajectories.conditions import find_parts, open_conditions, publish_conditions, read_part
from ardistill.trajectories.knots import nested_indices
from ardistill.trajectories.manifest import MANIFEST, PROMPTS, Manifest, shard_name
from ardistill.trajectories.record import (
    ShardMaker,
    TrajectoryDataset,
    make_missing,
    read_prompts,
)
from ardistill.trajectories.shards import decode_shard, encode_shard


@dataclass(frozen=True)
class Inspection:
    """What a look at every file of a recording found."""

    num_shards: int
    missing: list[str] = field(default_factory=list)
    """Files that are not there."""
    broken: dict[str, str] = field(default_factory=dict)
    """Files that are there, and what is wrong with them."""
    stray: list[str] = field(default_factory=list)
    """Files that are not the recording's; left alone."""
    leftovers: int = 0
    """Halves that killed writers left; `repair` removes them."""

    @property
    def whole(self) -> bool:
        return not self.missing and not self.broken


def info(folder: str | Path) -> dict[str, Any]:
    """What the manifest says, how much of it is there, and for which numbers of student's steps.

    Raises:
        ValueError: There is no manifest, or it is broken.
    """
    store = Store(folder)
    manifest, sizes = Manifest.read(store), store.sizes()
    present = sum(shard_name(shard) in sizes for shard in range(manifest.num_shards))
    serves = [
        n for n in range(1, min(8, manifest.solver_steps) + 1)
        if set(nested_indices(manifest.solver_steps, n)) <= set(manifest.kept)
    ]  # fmt: skip
    facts = {name: value for name, value in asdict(manifest).items() if name not in ("knots", "scheduler")}
    return {
        **facts,
        "scheduler": manifest.scheduler.get("_class_name"),
        "num_shards": manifest.num_shards,
        "num_present": present,
        "num_steps": serves,
        "bytes": sum(sizes.values()),
    }


def verify(folder: str | Path, progress: bool = True) -> Inspection:
    """Read every byte and check every checksum.

    Raises:
        ValueError: There is no manifest, or it is broken.
    """
    store = Store(folder)
    manifest, sizes = Manifest.read(store), store.sizes()
    missing, broken, known = [], {}, {MANIFEST}
    if manifest.prompts:
        known.add(PROMPTS)
        if PROMPTS not in sizes:
            missing.append(PROMPTS)
        elif reason := _reason(lambda: read_prompts(store, manifest)):
            broken[PROMPTS] = reason
        present, lacking = find_parts(sizes, manifest)
        missing += [part.name for part in lacking]
        hidden = not progress or len(present) == 1
        for part in progress_bar(present, desc="verify prompts", unit="file", disable=hidden):
            known.add(part.name)
            if reason := _reason(lambda part=part: read_part(store, part)):  # type: ignore[misc]
                broken[part.name] = reason
    for shard in progress_bar(range(manifest.num_shards), desc="verify", unit="shard", disable=not progress):
        name = shard_name(shard)
        known.add(name)
        if name not in sizes:
            missing.append(name)
        elif reason := _fault(store, manifest, shard):
            broken[name] = reason
    return Inspection(manifest.num_shards, missing, broken, sorted(set(sizes) - known), len(store.leftovers()))


def _reason(read: Callable[[], Any]) -> str:
    """What is wrong with a file that ``read`` reads; empty if nothing."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return ""


def _fault(store: Store, manifest: Manifest, shard: int) -> str:
    """What is wrong with a shard; empty if nothing."""
    name = shard_name(shard)
    try:
        found = decode_shard(manifest.layout(shard), store.read(name), store.where(name))
    except ValueError as error:
        return str(error)
    if not np.array_equal(found.labels, manifest.labels(shard).numpy()):
        return "its labels are not what the manifest says"
    if not np.allclose(found.guidance, manifest.guidance(shard).numpy(), rtol=1e-6):
        return "its guidance scales are not what the manifest says"
    return ""


@dataclass(frozen=True)
class Repair:
    """What was made again."""

    before: Inspection
    remade: list[str]
    largest_difference: float | None
    """Between an intact shard and the same made here, in units of its largest value: 0 on the hardware that recorded
    it, rounding on another; None if no shard was left to compare."""


def repair(teacher: Teacher, folder: str | Path, device: Device = None, progress: bool = True) -> Repair:
    """Make again what is missing or broken, in the place of what is there, and remove what killed writers left.

    On other hardware what is made differs from what was lost by rounding; a shard carries its own checksum, so that
    both are whole. How much they differ is measured on an intact shard.

    Args:
        teacher: Of the recording.
        folder: Path or URL.
        device: Where the teacher is moved to and runs; where it is if not given.
        progress: Show bars.

    Raises:
        ValueError: The manifest or the prompts are broken, the teacher is another, or what it makes here differs from
            an intact shard by more than rounding.
    """
    store, where = Store(folder), resolve_device(device, teacher.device)
    manifest = Manifest.read(store)
    before = verify(folder, progress)
    lost = {*before.missing, *before.broken}
    if manifest.prompts:
        for part in find_parts(store.sizes(), manifest)[0]:
            if part.name in before.broken:
                store.delete(part.name)
        publish_conditions(store, manifest, teacher, read_prompts(store, manifest), where, progress)
    make, difference = ShardMaker(teacher, manifest, open_conditions(store, manifest), where), None
    intact = [shard for shard in range(manifest.num_shards) if shard_name(shard) not in lost]
    if lost and intact:
        name = shard_name(intact[0])
        stored, made = decode_shard(manifest.layout(intact[0]), store.read(name), store.where(name)), make(intact[0])
        apart = np.abs(stored.states.astype(np.float32) - made.states.astype(np.float32)).max()
        difference = float(apart / np.abs(stored.states).max())
        # bf16 products of other hardware differ by more than fp32's.
        if difference > (0.2 if manifest.mixed_precision == "bf16" else 0.02):
            raise ValueError(
                f"what {manifest.teacher or 'the teacher'} makes here is {difference:.1%} away from {name}, which is "
                "intact; nothing was changed: look for another version of torch or diffusers than it was recorded with"
            )
    for shard in progress_bar(range(manifest.num_shards), desc="repair", unit="shard", disable=not progress):
        if shard_name(shard) in before.broken:
            store.publish(shard_name(shard), encode_shard(manifest.layout(shard), make(shard)))
    make_missing(store, manifest, teacher, where, progress)
    return Repair(before, sorted(lost), difference)


CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
# Trajectories of {teacher}

{count:,} solutions of the probability-flow ODE of {teacher}, recorded by ardistill: {steps} solver steps, guidance
scale {guidance}. A row is one trajectory: `states` holds x_t at {kept} times, noisiest first, and `denoised` the
estimate of x_0 of the step that arrives at each but the first; both flat, to be reshaped to (-1, *`shape`).
`manifest.json` has the times and all settings.

```python
rows = datasets.load_dataset("this folder or Hub id", split="train").with_format("numpy")
states = rows[0]["states"].reshape(-1, *rows[0]["shape"])
```
"""


def export_parquet(folder: str | Path, out: str | Path, progress: bool = True) -> int:
    """Write a folder that `datasets` loads and the Hub shows: a Parquet file per shard, a card and the manifest.

    Args:
        folder: Path or URL of what ``record`` wrote, all of it.
        out: Path or URL of a new folder; files that an export before this one finished are not written again.
        progress: Show a bar.

    Returns:
        Number of trajectories.

    Raises:
        ValueError: The recording is not whole, or ``out`` holds something else.
    """
    data = TrajectoryDataset(folder, 1)
    manifest, target, files = data.manifest, Store(out), Store(f"{str(out).rstrip('/')}/data")
    if target.sizes() and (not target.exists(MANIFEST) or Manifest.read(target) != manifest):
        raise ValueError(f"expected {out} to be empty or to hold this export; choose a new folder")
    manifest.publish(target)
    there, count = files.sizes(), manifest.num_shards
    for number in progress_bar(range(count), desc="export", unit="shard", disable=not progress):
        name = f"train-{number:05d}-of-{count:05d}.parquet"
        if name in there:
            continue
        shard = data.shard(number)
        shape = list(manifest.sample_shapes[manifest.shape_of(number)])
        columns: dict[str, Any] = {
            "index": np.arange(len(shard.labels)) + number * manifest.shard_size,
            "states": _lists(shard.states),
            "denoised": _lists(shard.denoised),
            "shape": pa.array([shape] * len(shard.labels), pa.list_(pa.int32())),
            "guidance_scale": shard.guidance,
            "prompt" if data.prompts else "label": (
                [data.prompts[i] for i in shard.labels] if data.prompts else shard.labels
            ),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, compression="none")
        files.publish(name, sink.getvalue().to_pybytes())
    low, high = manifest.guidance_range
    card = CARD.format(
        teacher=manifest.teacher or "an unnamed teacher",
        count=len(data),
        steps=manifest.solver_steps,
        guidance=f"{low:g}" if low == high else f"{low:g} to {high:g}",
        kept=len(manifest.kept),
    )
    target.publish("README.md", card.encode())
    return len(data)


def _lists(x: np.ndarray) -> pa.Array:
    """(rows, ...) -> a list of numbers a row."""
    flat = x.reshape(len(x), -1)
    offsets = np.arange(len(x) + 1, dtype=np.int64) * flat.shape[1]
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat.reshape(-1)))


def describe(found: dict[str, Any]) -> str:
    """What ``info`` found, as lines for people."""
    low, high = found["guidance_range"]
    rows = {
        "teacher": f"{found['teacher'] or 'unnamed'}, weights {found['fingerprint'][:12]}",
        "trajectories": f"{found['num_trajectories']:,} of seed {found['seed']}, in {found['num_shards']:,} shards of "
        f"{found['shard_size']}; {found['num_present']:,} of them are there",
        "states": f"{len(found['kept'])} of {found['solver_steps'] + 1}, {found['dtype']}, "
        + " and ".join("x".join(map(str, shape)) for shape in found["sample_shapes"]),
        "students of": ", ".join(map(str, found["num_steps"])) + " steps",
        "guidance": (f"{low:g}" if low == high else f"{low:g} to {high:g}")
        + (f" on {found['guidance_channels']} channels" if found["guidance_channels"] else ""),
        "conditions": f"{found['num_conditions']:,} {'prompts' if found['prompts'] else 'classes'}",
        "disk": f"{found['bytes'] / 1e6:,.1f} MB",
    }
    return "\n".join(f"{name:<14}{text}" for name, text in rows.items())


def describe_inspection(found: Inspection, at_most: int = 20) -> str:
    """What ``verify`` found, as lines for people."""
    lines = [f"{name}: missing" for name in found.missing] + [f"{name}: {why}" for name, why in found.broken.items()]
    lines = lines[:at_most] + ([f"and {len(lines) - at_most} more"] if len(lines) > at_most else [])
    if found.stray:
        lines.append(f"not the recording's, left alone: {', '.join(found.stray[:at_most])}")
    if found.leftovers:
        lines.append(f"{found.leftovers} halves of killed writers; repair removes them")
    bad = len(found.missing) + len(found.broken)
    lines.append(f"{found.num_shards} shards: " + ("all is whole" if found.whole else f"{bad} files to repair"))
    return "\n".join(lines)
