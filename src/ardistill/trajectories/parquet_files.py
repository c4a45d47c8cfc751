"""The Parquet form of a recording: its shards as Parquet files in the subfolder ``data``, all else as in the recording.

One form serves two readers: `datasets` and the Hub's viewer see a table, and `TrajectoryDataset` sees the recording's
shards, to the bit. A page's checksum takes the place of the seal of an Arrow file.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ardistill.files import Store
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shard_files import ShardFiles, find_fault
from ardistill.trajectories.shards import DTYPES, Shard

FOLDER = "data"
"""Subfolder of the Parquet files."""
ROW_GROUP = 64 * 2**20
"""Bytes of states in a row group: the Hub's viewer reads whole row groups, up to 300 MB."""
_REMEDY = "export the recording again, or download it again"


def parquet_name(manifest: Manifest, shard: int) -> str:
    """Name of a shard's file in the subfolder."""
    return f"train-{shard:05d}-of-{manifest.num_shards:05d}.parquet"


def data_store(store: Store) -> Store:
    """The store of the Parquet files."""
    return Store(f"{store.url.rstrip('/')}/{FOLDER}")


class ParquetFiles:
    """Opens the shards of the Parquet form; each is in memory as long as it is held.

    Args:
        store: The recording's store.
        manifest: The recording's manifest.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = data_store(store)
        self.manifest = manifest

    def where(self, shard: int) -> str:
        """Path or URL of a shard's file."""
        return self.store.where(parquet_name(self.manifest, shard))

    def present(self) -> set[int]:
        """Numbers of the shards whose file is there; its content is not checked."""
        sizes = self.store.sizes()
        return {x for x in range(self.manifest.num_shards) if parquet_name(self.manifest, x) in sizes}

    def __call__(self, shard: int) -> Shard:
        """Read a shard.

        Raises:
            ValueError: It is missing or damaged, or belongs to another recording.
        """
        where, layout = self.where(shard), self.manifest.layout(shard)
        data = self.store.read(parquet_name(self.manifest, shard))
        try:
            table = pq.read_table(pa.BufferReader(pa.py_buffer(data)), page_checksum_verification=True)
            facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            if (facts.get("recording"), facts.get("shard")) != (layout.recording, str(shard)):
                raise ValueError(f"{where} belongs to another recording or another place; {_REMEDY}")
            kept, shape = layout.kept, layout.sample_shape
            found = Shard(
                _values(table, "states", (layout.rows, kept, *shape), DTYPES[layout.dtype]),
                _values(table, "denoised", (layout.rows, kept - 1, *shape), DTYPES[layout.dtype]),
                self.manifest.labels(shard).numpy(),
                table["guidance_scale"].to_numpy(),
            )
        except (pa.ArrowException, KeyError, OSError, UnicodeDecodeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{where} cannot be read as a shard ({reason}); {_REMEDY}") from error
        if fault := find_fault(self.manifest, shard, found):
            raise ValueError(f"{where}: {fault}; {_REMEDY}")
        return found


def _values(table: pa.Table, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A column of lists of numbers as one array.

    Raises:
        pa.ArrowInvalid: Its type or its number of values is not the expected one.
    """
    column = table[name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if values.dtype != dtype or values.size != np.prod(shape) or len(column) != shape[0]:
        raise pa.ArrowInvalid(f"expected {shape} {dtype} in {name}, found {values.size} {values.dtype}")
    return values.reshape(shape)


def is_parquet(store: Store, manifest: Manifest, names: Iterable[str]) -> bool:
    """Whether a recording is there in its Parquet form.

    Args:
        store: The recording's store.
        manifest: The recording's manifest.
        names: Names of the files in the store.
    """
    arrow = {shard_name(shard) for shard in range(manifest.num_shards)}
    return arrow.isdisjoint(names) and bool(ParquetFiles(store, manifest).present())


def open_shards(store: Store, manifest: Manifest) -> ShardFiles | ParquetFiles:
    """What opens the shards of a recording, in the form in which they are there."""
    return (ParquetFiles if is_parquet(store, manifest, store.sizes()) else ShardFiles)(store, manifest)
