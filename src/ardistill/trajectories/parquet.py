"""Export a recording as Parquet files, for `datasets` and the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ardistill.files import Store
from ardistill.progress import bar as progress_bar
from ardistill.trajectories.dataset import TrajectoryDataset
from ardistill.trajectories.info import describe_guidance
from ardistill.trajectories.manifest import MANIFEST, Manifest

_CARD = """---
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
    """Export a recording as a folder that `datasets` loads and the Hub shows: Parquet files, a card and the manifest.

    Args:
        folder: A path or URL that ``record`` wrote, complete.
        out: Path or URL of a new folder; an interrupted export goes on where it ended.
        progress: Show a bar.

    Returns:
        Number of trajectories.

    Raises:
        ValueError: The recording is not complete, or ``out`` holds something else.
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
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(_columns(data, number)), sink, compression="none")
        files.publish(name, sink.getvalue().to_pybytes())
    card = _CARD.format(
        teacher=manifest.teacher or "an unnamed teacher",
        count=len(data),
        steps=manifest.solver_steps,
        guidance=describe_guidance(*manifest.guidance_range),
        kept=len(manifest.kept),
    )
    target.publish("README.md", card.encode())
    return len(data)


def _columns(data: TrajectoryDataset, number: int) -> dict[str, Any]:
    """Columns of a shard's Parquet file."""
    manifest, shard = data.manifest, data.shard(number)
    shape = list(manifest.sample_shapes[manifest.shape_of(number)])
    return {
        "index": np.arange(len(shard.labels)) + number * manifest.shard_size,
        "states": _lists(shard.states),
        "denoised": _lists(shard.denoised),
        "shape": pa.array([shape] * len(shard.labels), pa.list_(pa.int32())),
        "guidance_scale": shard.guidance,
        "prompt" if data.prompts else "label": (
            [data.prompts[i] for i in shard.labels] if data.prompts else shard.labels
        ),
    }


def _lists(x: np.ndarray) -> pa.Array:
    """Convert an array (rows, ...) to one list of numbers per row."""
    flat = x.reshape(len(x), -1)
    offsets = np.arange(len(x) + 1, dtype=np.int64) * flat.shape[1]
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat.reshape(-1)))
