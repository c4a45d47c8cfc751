"""Check every file of a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ardistill.files import Store
from ardistill.progress import bar as progress_bar
from ardistill.trajectories.conditions import find_parts, read_part, read_prompts
from ardistill.trajectories.manifest import MANIFEST, PROMPTS, Manifest, shard_name
from ardistill.trajectories.parquet_files import FOLDER, ParquetFiles, data_store, is_parquet, parquet_name
from ardistill.trajectories.shard_files import find_fault
from ardistill.trajectories.shards import decode_shard


@dataclass(frozen=True)
class Inspection:
    """The state of every file of a recording."""

    num_shards: int
    """Number of shards that the recording has when it is complete."""
    missing: list[str] = field(default_factory=list)
    """Files that are missing."""
    broken: dict[str, str] = field(default_factory=dict)
    """Damaged file -> what is wrong with it."""
    stray: list[str] = field(default_factory=list)
    """Files that do not belong to the recording; they are left alone."""
    leftovers: int = 0
    """Number of temporary files that killed writers left; `repair` removes them."""

    @property
    def whole(self) -> bool:
        """Whether no file is missing or damaged."""
        return not self.missing and not self.broken


def verify(folder: str | Path, progress: bool = True) -> Inspection:
    """Read every byte of a recording and check every checksum.

    Args:
        folder: A path or URL that ``record`` wrote.
        progress: Show bars.

    Raises:
        ValueError: The manifest is missing or damaged.
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
    in_parquet = is_parquet(store, manifest, sizes)
    if in_parquet:
        known.add("README.md")
        sizes = sizes | {f"{FOLDER}/{name}": size for name, size in data_store(store).sizes().items()}
    for shard in progress_bar(range(manifest.num_shards), desc="verify", unit="shard", disable=not progress):
        name = f"{FOLDER}/{parquet_name(manifest, shard)}" if in_parquet else shard_name(shard)
        known.add(name)
        if name not in sizes:
            missing.append(name)
        elif reason := _check_shard(store, manifest, shard, in_parquet):
            broken[name] = reason
    return Inspection(manifest.num_shards, missing, broken, sorted(set(sizes) - known), len(store.leftovers()))


def _reason(read: Callable[[], Any]) -> str:
    """What is wrong with the file that ``read`` reads; empty if nothing is."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return ""


def _check_shard(store: Store, manifest: Manifest, shard: int, in_parquet: bool) -> str:
    """What is wrong with a shard; empty if nothing is."""
    if in_parquet:
        return _reason(lambda: ParquetFiles(store, manifest)(shard))
    name = shard_name(shard)
    try:
        found = decode_shard(manifest.layout(shard), store.read(name), store.where(name))
    except ValueError as error:
        return str(error)
    return find_fault(manifest, shard, found)


def describe_inspection(found: Inspection, at_most: int = 20) -> str:
    """Format the result of `verify` as text, with at most ``at_most`` files of each kind."""
    lines = [f"{name}: missing" for name in found.missing] + [f"{name}: {why}" for name, why in found.broken.items()]
    lines = lines[:at_most] + ([f"and {len(lines) - at_most} more"] if len(lines) > at_most else [])
    if found.stray:
        lines.append(f"not the recording's, left alone: {', '.join(found.stray[:at_most])}")
    if found.leftovers:
        lines.append(f"{found.leftovers} halves of killed writers; repair removes them")
    bad = len(found.missing) + len(found.broken)
    lines.append(f"{found.num_shards} shards: " + ("all is whole" if found.whole else f"{bad} files to repair"))
    return "\n".join(lines)
