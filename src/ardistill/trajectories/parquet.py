"""Export a recording in its Parquet form, which `datasets`, the Hub's viewer and `TrajectoryDataset` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ardistill.files import Store
from ardistill.progress import bar as progress_bar
from ardistill.teacher import public_name
from ardistill.trajectories.conditions import find_parts
from ardistill.trajectories.dataset import TrajectoryDataset
from ardistill.trajectories.info import describe_guidance
from ardistill.trajectories.manifest import MANIFEST, PROMPTS, Manifest
from ardistill.trajectories.parquet_files import FOLDER, ROW_GROUP, data_store, parquet_name

TAG = "ardistill"
"""The tag by which a card says that this package wrote what it stands beside."""
PLACE = "this/folder"
"""What the card calls the folder until it is pushed and has a name."""
_CARD = """---
{metadata}
---
# Trajectories of {teacher}

{count:,} solutions of the probability-flow ODE of {teacher}, recorded by ardistill: {steps} solver steps, guidance
scale {guidance}. A row is one trajectory: `states` holds x_t at {kept} times, noisiest first, and `denoised` the
estimate of x_0 of the step that arrives at each but the first; both flat, to be reshaped to (-1, *`shape`).
`manifest.json` has the times and all settings.

```python
rows = datasets.load_dataset("{place}", split="train").with_format("numpy")
states = rows[0]["states"].reshape(-1, *rows[0]["shape"])
```

ardistill trains from the same files, from a folder as well as from the Hub (`hf://datasets/...`):

```python
data = ardistill.TrajectoryDataset("{url}", num_steps=4)
```
"""


def export_parquet(
    folder: str | Path, out: str | Path, progress: bool = True, license: Mapping[str, str] | None = None
) -> int:
    """Export a recording in its Parquet form: Parquet files, a card, the manifest, the prompts and their embeddings.

    Of a teacher in a folder, the export names the last part of its path alone.

    Args:
        folder: A path or URL that ``record`` wrote, complete.
        out: Path or URL of a new folder; an interrupted export goes on where it ended.
        progress: Show a bar.
        license: ``license`` and its like for the card's metadata.

    Returns:
        Number of trajectories.

    Raises:
        ValueError: The recording is not complete, or ``out`` holds something else.
    """
    data = TrajectoryDataset(folder, 1)
    name = data.manifest.teacher
    data.manifest = manifest = replace(data.manifest, teacher=public_name(name) if name else "")
    target = Store(out)
    if target.sizes() and (not target.exists(MANIFEST) or Manifest.read(target) != manifest):
        raise ValueError(f"expected {out} to be empty or to hold this export; choose a new folder")
    manifest.publish(target)
    if manifest.prompts:
        there = target.sizes()
        for name in [PROMPTS, *(part.name for part in find_parts(data.store.sizes(), manifest)[0])]:
            if name not in there:
                target.publish(name, bytes(data.store.read(name)))
    files = data_store(target)
    there = files.sizes()
    for number in progress_bar(range(manifest.num_shards), desc="export", unit="shard", disable=not progress):
        name = parquet_name(manifest, number)
        if name not in there:
            files.publish(name, _encode(data, number))
    target.publish("README.md", _card(data, str(out), license or {}).encode())
    return len(data)


def _encode(data: TrajectoryDataset, number: int) -> bytes:
    """A shard as the content of a Parquet file."""
    layout = data.manifest.layout(number)
    rows = max(1, ROW_GROUP * layout.rows // layout.payload)
    table = pa.table(_columns(data, number, rows))
    table = table.replace_schema_metadata({"recording": layout.recording, "shard": str(number)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", row_group_size=rows, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _columns(data: TrajectoryDataset, number: int, rows: int) -> dict[str, Any]:
    """Columns of a shard's Parquet file, in chunks of some rows."""
    manifest, shard = data.manifest, data.shard(number)
    shape = list(manifest.sample_shapes[manifest.shape_of(number)])
    return {
        "index": np.arange(len(shard.labels)) + number * manifest.shard_size,
        "states": _lists(shard.states, rows),
        "denoised": _lists(shard.denoised, rows),
        "shape": pa.array([shape] * len(shard.labels), pa.list_(pa.int32())),
        "guidance_scale": shard.guidance,
        "prompt" if data.prompts else "label": (
            [data.prompts[i] for i in shard.labels] if data.prompts else shard.labels
        ),
    }


def _features(manifest: Manifest) -> list[dict[str, str]]:
    """The columns as a card names them; the word for lists is the one that every version of `datasets` reads."""
    condition = {"name": "prompt", "dtype": "string"} if manifest.prompts else {"name": "label", "dtype": "int64"}
    return [
        {"name": "index", "dtype": "int64"},
        {"name": "states", "sequence": manifest.dtype},
        {"name": "denoised", "sequence": manifest.dtype},
        {"name": "shape", "sequence": "int32"},
        {"name": "guidance_scale", "dtype": "float32"},
        condition,
    ]


def _lists(x: np.ndarray, rows: int) -> pa.ChunkedArray:
    """Convert an array (n, ...) to one list of numbers per row; offsets of 32 bits are enough for a chunk of rows."""
    flat = x.reshape(len(x), -1)
    chunks = []
    for start in range(0, len(flat), rows):
        part = flat[start : start + rows]
        offsets = np.arange(len(part) + 1, dtype=np.int32) * flat.shape[1]
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(part.reshape(-1))))
    return pa.chunked_array(chunks)


def _card(data: TrajectoryDataset, out: str, license: Mapping[str, str]) -> str:
    """The card of the Parquet form."""
    manifest = data.manifest
    facts = {
        **license,
        "tags": [TAG, "trajectories"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": f"{FOLDER}/train-*.parquet"}]}
        ],
        "dataset_info": {"features": _features(manifest)},
    }
    return _CARD.format(
        metadata=yaml.safe_dump(facts, sort_keys=False).strip(),
        teacher=manifest.teacher or "an unnamed teacher",
        count=len(data),
        steps=manifest.solver_steps,
        guidance=describe_guidance(*manifest.guidance_range),
        kept=len(manifest.kept),
        place=PLACE,
        url=PLACE,
    )
