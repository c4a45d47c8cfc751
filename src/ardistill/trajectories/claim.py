"""Whether a folder may be recorded into: it is empty or holds the same recording, perhaps with fewer trajectories."""

from __future__ import annotations

from dataclasses import replace

from ardistill.files import Store
from ardistill.trajectories.manifest import MANIFEST, Manifest, shard_name
from ardistill.trajectories.shards import decode_shard


def claim(store: Store, manifest: Manifest) -> Manifest:
    """Publish the manifest, or check that the store holds the same recording; trajectories are added if it has fewer.

    Returns:
        The published manifest.

    Raises:
        ValueError: The store holds something else, or a recording that differs (the message says in what) or has more
            trajectories.
    """
    if not store.exists(MANIFEST):
        there = store.sizes()
        if there and not store.exists(MANIFEST):
            known = [x for x in (manifest, manifest.as_version_3()) if _owns_shards(store, x, set(there))]
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


def reread(store: Store, manifest: Manifest) -> Manifest:
    """Read the manifest again: another process may have added trajectories.

    If two processes add trajectories at once, the manifest published last stands, perhaps the one with fewer; then
    the trajectories of ``manifest`` are added again.

    Raises:
        ValueError: Another recording began in the store.
    """
    found = Manifest.read(store)
    if found.recording != manifest.recording:
        raise ValueError(f"another recording began in {store} meanwhile; choose a new folder for one of them")
    if found.num_trajectories < manifest.num_trajectories:
        return _extend(store, found, manifest.num_trajectories)
    return found


def _extend(store: Store, found: Manifest, num_trajectories: int) -> Manifest:
    """Publish a manifest with more trajectories; a last shard that is smaller than the others will be made anew.

    That shard is deleted twice. Before the new manifest is published, so that a kill in between leaves a missing shard,
    not a short one; and afterwards, because another process may have published it meanwhile by the old manifest.
    """
    grown, last = replace(found, num_trajectories=num_trajectories), found.num_shards - 1
    is_short = found.num_rows(last) < grown.num_rows(last)
    if is_short:
        store.delete(shard_name(last))
    grown.publish(store)
    if is_short:
        store.delete(shard_name(last))
    return grown


def _owns_shards(store: Store, manifest: Manifest, names: set[str]) -> bool:
    """Whether the shards in a store without a manifest belong to this recording, judged by the first one."""
    shards = [shard for shard in range(manifest.num_shards) if shard_name(shard) in names]
    try:
        for shard in shards[:1]:
            decode_shard(manifest.layout(shard), store.read(shard_name(shard)), store.where(shard_name(shard)))
    except ValueError:
        return False
    return bool(shards)
