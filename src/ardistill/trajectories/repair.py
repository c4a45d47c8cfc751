"""Make the missing and damaged files of a recording again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ardistill.devices import Device, resolve_device
from ardistill.files import Store
from ardistill.progress import bar as progress_bar
from ardistill.teacher import Teacher
from ardistill.trajectories.conditions import find_parts, open_conditions, publish_conditions, read_prompts
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.parquet_files import is_parquet
from ardistill.trajectories.shard_maker import ShardMaker, make_missing
from ardistill.trajectories.shards import decode_shard, encode_shard
from ardistill.trajectories.verify import Inspection, verify


@dataclass(frozen=True)
class Repair:
    """What was made again."""

    before: Inspection
    """The state of the recording before."""
    remade: list[str]
    """Names of the files that were made again."""
    largest_difference: float | None
    """Largest difference between the states of an intact shard and those made here, relative to the largest value: 0 on
    the hardware that recorded it, rounding on other hardware; None if nothing was lost or no shard was intact."""


def repair(teacher: Teacher, folder: str | Path, device: Device = None, progress: bool = True) -> Repair:
    """Make missing and damaged files again, and remove temporary files that killed writers left.

    On other hardware than the recording's, a shard made again differs by rounding; each shard has its own checksum, so
    that it is still valid. An intact shard is made again first to measure the difference.

    Args:
        teacher: The recording's teacher.
        folder: A path or URL that ``record`` wrote.
        device: Device that the teacher is moved to; its current device if not given.
        progress: Show bars.

    Raises:
        ValueError: The manifest or the prompts are damaged, the folder is the Parquet form of a recording, the teacher
            is not the recording's, or the shard made here differs from the intact one by more than rounding.
    """
    store, where = Store(folder), resolve_device(device, teacher.device)
    manifest = Manifest.read(store)
    if is_parquet(store, manifest, store.sizes()):
        raise ValueError(
            f"{folder} is the Parquet form of a recording; repair the recording itself and export it again"
        )
    before = verify(folder, progress)
    lost = {*before.missing, *before.broken}
    if manifest.prompts:
        for part in find_parts(store.sizes(), manifest)[0]:
            if part.name in before.broken:
                store.delete(part.name)
        publish_conditions(store, manifest, teacher, read_prompts(store, manifest), where, progress)
    make = ShardMaker(teacher, manifest, open_conditions(store, manifest), where)
    difference = _measure(store, manifest, make, lost) if lost else None
    for shard in progress_bar(range(manifest.num_shards), desc="repair", unit="shard", disable=not progress):
        if shard_name(shard) in before.broken:
            store.publish(shard_name(shard), encode_shard(manifest.layout(shard), make(shard)))
    make_missing(store, manifest, teacher, where, progress)
    return Repair(before, sorted(lost), difference)


def _measure(store: Store, manifest: Manifest, make: ShardMaker, lost: Collection[str]) -> float | None:
    """Make the first intact shard again and compare its states; None if no shard is intact.

    Raises:
        ValueError: They differ by more than rounding.
    """
    shard = next((i for i in range(manifest.num_shards) if shard_name(i) not in lost), None)
    if shard is None:
        return None
    name = shard_name(shard)
    stored, made = decode_shard(manifest.layout(shard), store.read(name), store.where(name)), make(shard)
    apart = np.abs(stored.states.astype(np.float32) - made.states.astype(np.float32)).max()
    difference = float(apart / np.abs(stored.states).max())
    # Between kinds of hardware, products in bf16 differ by more than those in float32.
    if difference > (0.02 if (manifest.mixed_precision, manifest.weights) == ("no", "float32") else 0.2):
        raise ValueError(
            f"what {manifest.teacher or 'the teacher'} makes here is {difference:.1%} away from {name}, which is "
            "intact; nothing was changed: look for another version of torch or diffusers than it was recorded with"
        )
    return difference
