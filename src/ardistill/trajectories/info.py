"""What a recording holds, from its manifest and the names and sizes of its files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ardistill.files import Store
from ardistill.trajectories.knots import nested_indices
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.parquet_files import ParquetFiles, data_store, is_parquet


def info(folder: str | Path) -> dict[str, Any]:
    """Facts of a recording: its manifest, how many shards are present, and the step counts of students it serves.

    Raises:
        ValueError: The manifest is missing or damaged.
    """
    store = Store(folder)
    manifest, sizes = Manifest.read(store), store.sizes()
    present = sum(shard_name(shard) in sizes for shard in range(manifest.num_shards))
    if is_parquet(store, manifest, sizes):
        sizes = sizes | data_store(store).sizes()
        present = len(ParquetFiles(store, manifest).present())
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


def describe(found: dict[str, Any]) -> str:
    """Format the result of `info` as text."""
    channels = found["guidance_channels"]
    rows = {
        "teacher": f"{found['teacher'] or 'unnamed'}, weights {found['fingerprint'][:12]}",
        "trajectories": f"{found['num_trajectories']:,} of seed {found['seed']}, in {found['num_shards']:,} shards of "
        f"{found['shard_size']}; {found['num_present']:,} of them are there",
        "states": f"{len(found['kept'])} of {found['solver_steps'] + 1}, {found['dtype']}, "
        + " and ".join("x".join(map(str, shape)) for shape in found["sample_shapes"]),
        "students of": ", ".join(map(str, found["num_steps"])) + " steps",
        "guidance": describe_guidance(*found["guidance_range"]) + (f" on {channels} channels" if channels else ""),
        "conditions": f"{found['num_conditions']:,} {'prompts' if found['prompts'] else 'classes'}",
        "disk": f"{found['bytes'] / 1e6:,.1f} MB",
    }
    return "\n".join(f"{name:<14}{text}" for name, text in rows.items())


def describe_guidance(low: float, high: float) -> str:
    """Format a range of guidance scales as text."""
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
