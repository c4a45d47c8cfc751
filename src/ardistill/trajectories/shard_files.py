"""Recorded shards, opened and checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from ardistill.files import Store
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import Shard, find_columns, view_shard


class ShardFiles:
    """Opens the shards of a recording; a local file that is unchanged since its last check is not checked again.

    A pickled copy has checked nothing yet.

    Args:
        store: The recording's store.
        manifest: The recording's manifest.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self._known = np.zeros((manifest.num_shards, 7), np.int64)
        """Row i: offsets of the 4 columns and stamp of shard i's file when it was last checked; zeros before."""

    def where(self, shard: int) -> str:
        """Path or URL of a shard's file."""
        return self.store.where(shard_name(shard))

    def present(self) -> set[int]:
        """Numbers of the shards whose file is there; its content is not checked.

        Raises:
            ValueError: A file is too small for its rows.
        """
        return self.manifest.present(self.store)

    def __call__(self, shard: int) -> Shard:
        """Open a shard.

        Raises:
            ValueError: It is missing or damaged, or belongs to another recording.
        """
        name, layout, known = shard_name(shard), self.manifest.layout(shard), self._known[shard]
        stamp, data, where = self.store.stamp(name), self.store.read(name), self.store.where(name)
        if stamp is not None and tuple(known[4:]) == stamp:
            return view_shard(layout, data, known[:4])
        starts = find_columns(layout, data, where)
        found = view_shard(layout, data, starts)
        if fault := find_fault(self.manifest, shard, found):
            raise ValueError(f"{where}: {fault}; `ardistill trajectories repair` makes it again")
        if stamp is not None:
            known[:] = (*starts, *stamp)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": np.zeros_like(self._known)}


def find_fault(manifest: Manifest, shard: int, found: Shard) -> str:
    """What in a shard's labels or guidance scales differs from the manifest; empty if nothing does."""
    if not np.array_equal(found.labels, manifest.labels(shard).numpy()):
        return "its labels are not what the manifest says"
    if not np.allclose(found.guidance, manifest.guidance(shard).numpy(), rtol=1e-6):
        return "its guidance scales are not what the manifest says"
    return ""
