"""Writes the shards of a recording on a thread of its own, while the next one is solved."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ardistill.files import Store
from ardistill.trajectories.claim import reread
from ardistill.trajectories.manifest import Manifest, shard_name
from ardistill.trajectories.shards import Shard, encode_shard


class ShardWriter:
    """Encodes, seals and publishes one shard at a time, beside the caller.

    At the end of its ``with`` block, whatever ends the block, a shard that is being written is written to its end.

    Args:
        store: The recording's store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, "shard-writer")
        self._writing: Future[Manifest] | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._thread.shutdown()

    @property
    def is_writing(self) -> bool:
        """Whether a shard was begun whose end has not been waited for."""
        return self._writing is not None

    def begin(self, manifest: Manifest, shard: int, finish: Callable[[], Shard]) -> None:
        """Begin to write a shard, once the one before is written.

        Args:
            manifest: The manifest that the shard was solved by.
            shard: Number of the shard.
            finish: Gives the shard.
        """
        assert self._writing is None
        self._writing = self._thread.submit(_publish, self.store, manifest, shard, finish)

    def wait(self) -> Manifest | None:
        """Wait until the shard that was begun is written.

        Returns:
            The manifest as it is then: another process may have added trajectories. None if no shard was begun.

        Raises:
            ValueError: A value is not finite, the store cannot be written, or another recording began in it.
        """
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()


def _publish(store: Store, manifest: Manifest, shard: int, finish: Callable[[], Shard]) -> Manifest:
    """Publish a shard, unless the recording has grown and the shard has more rows now."""
    data = encode_shard(manifest.layout(shard), finish())
    reread(store, manifest)
    store.publish(shard_name(shard), data)
    found = reread(store, manifest)
    if found.num_rows(shard) != manifest.num_rows(shard):
        store.delete(shard_name(shard))
    return found
