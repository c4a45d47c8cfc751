"""Checkpoints: sharded safetensors with a checksum of every file, published whole, of which the last few are kept.

A checkpoint is a folder of safetensors files, one or more per process, written by torch's distributed checkpoint, so
that it loads into any number of processes, sharded or not. ``state.json`` holds everything that is not a tensor,
``manifest.json`` the checksums. A folder whose name does not end in ``.tmp`` is complete; damage done by the disk shows
in the checksums. No file is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ardistill.files.whole import publish_folder, write_whole

VERSION = 1
FILE_BYTES = 1 << 26
"""Bytes of a small checkpoint, which is one file."""
_NAME = re.compile(r"step-(\d{8,})")
_LOG = logging.getLogger(__name__)


def split(tree: dict[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate a tree into its tensors, by dotted path, and the tree without them."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            tensors[prefix + key] = value
        elif isinstance(value, dict):
            own, rest[key] = split(value, f"{prefix}{key}.")
            tensors |= own
        else:
            rest[key] = value
    return tensors, rest


def _join(tree: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """Combine a tree's tensors, which were filled in place, with the saved values of everything else."""
    saved = {key: _join(tree.get(key, {}), value) if isinstance(value, dict) else value for key, value in rest.items()}
    return saved | {key: value for key, value in tree.items() if isinstance(value, Tensor)}


def save(folder: str | Path, step: int, tree: dict[str, Any], keep: int, good: int = 0) -> Path:
    """Publish a checkpoint, then remove all but the newest ``keep`` and a good one. Every process calls it at once.

    Args:
        folder: Folder of all checkpoints of a run; every process sees it.
        step: Optimiser steps done.
        tree: Nested dicts of tensors (whole on every process, or DTensors) and of JSON values; keys are strings.
        keep: How many to keep, 1 or more.
        good: Step of a checkpoint to keep however old it is, if it exists.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It cannot be written; earlier checkpoints are unchanged.
    """
    tensors, rest = split(tree)
    return write(Path(folder), step, tensors, json.dumps(rest).encode(), keep, good)


def write(folder: Path, step: int, tensors: dict[str, Tensor], rest: bytes, keep: int, good: int) -> Path:
    """Do what `save` does, with a tree that `split` has separated; ``rest`` is what ``state.json`` will hold."""
    path, temporary = folder / f"step-{step:08d}", folder / f"step-{step:08d}.tmp"
    first, many = not dist.is_initialized() or dist.get_rank() == 0, dist.is_initialized()
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.tmp"):  # left by a killed process
            shutil.rmtree(stale)
        temporary.mkdir()
    if many:
        dist.barrier()
    try:
        writer = dcp.HuggingFaceStorageWriter(str(temporary), _file_numbers(tensors), save_distributed=True)
        _run(dcp.save, tensors, storage_writer=writer)
    except dcp.api.CheckpointException as error:  # raised on every process, whichever failed
        if first:
            shutil.rmtree(temporary, ignore_errors=True)  # frees the space of a full disk
        raise OSError(
            f"{path} cannot be written ({_causes(error)}); the checkpoints before it are whole: free space there, then "
            "the same command again goes on"
        ) from error
    if first:
        _publish(temporary, path, rest)
        for old in _all(folder)[keep:]:
            if step_of(old) != good:
                _remove(old)
    if many:
        dist.barrier()
    return path


def _file_numbers(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The number, from 1 on, of the file that each tensor is written to: the same on every process.

    The writer holds a file twice in memory while it serialises it. A file therefore has up to a sixteenth of all bytes,
    or up to `FILE_BYTES` if that is more.
    """
    most = max(FILE_BYTES, sum(x.nbytes for x in tensors.values()) // 16)
    numbers: dict[str, int] = {}
    number, size = 1, 0
    for name, x in tensors.items():
        if size and size + x.nbytes > most:
            number, size = number + 1, 0
        numbers[name] = number
        size += x.nbytes
    return numbers


def _publish(temporary: Path, path: Path, rest: bytes) -> None:
    """Add the state and the checksums to a folder of tensors, and give it its name.

    Checkpoints of the same or a later step are removed first: training resumed before them because they are broken.
    """
    write_whole(temporary / "state.json", rest)
    files = {file.name: _facts(file) for file in sorted(temporary.iterdir())}
    write_whole(temporary / "manifest.json", json.dumps({"version": VERSION, "files": files}, indent=1).encode())
    for broken in _all(path.parent):
        if step_of(broken) >= step_of(path):
            _remove(broken)
    publish_folder(temporary, path)


def newest(folder: str | Path) -> Path | None:
    """The last complete checkpoint, or None if there is no checkpoint yet. Each damaged one that is skipped is logged.

    Raises:
        ValueError: All checkpoints are damaged, or a newer version wrote the last one.
    """
    found = _all(Path(folder))
    for path in found:
        fault = _fault(path)
        if fault is None:
            return path
        _LOG.warning("checkpoint %s is broken (%s): the one before it is used", path, fault)
    if found:
        raise ValueError(f"no whole checkpoint in {folder}, {len(found)} broken ones; restore one, or start a new run")
    return None


def check(path: Path) -> None:
    """Check every file of a checkpoint.

    Raises:
        ValueError: It is incomplete or damaged, or a newer version wrote it.
    """
    fault = _fault(path)
    if fault is not None:
        raise ValueError(f"{path} is broken ({fault}); take another checkpoint")


def load(path: Path, tree: dict[str, Any], collectively: bool = True) -> dict[str, Any]:
    """Fill the tensors of a tree in place.

    Args:
        path: A complete checkpoint.
        tree: The saved tree or a part of it, with tensors of the same names and shapes; they may be sharded
            differently.
        collectively: True if every process calls this at once and reads the part that it holds; False if this process
            reads alone.

    Returns:
        The tree with the saved values.

    Raises:
        ValueError: The checkpoint's tensors do not fit the tree.
    """
    tensors, _ = split(tree)
    try:
        reader = dcp.HuggingFaceStorageReader(str(path))
        _run(dcp.load, tensors, collectively, storage_reader=reader)
    except dcp.api.CheckpointException as error:
        raise ValueError(
            f"{path} does not fit this run ({_causes(error)}); resume it with the version that wrote it"
        ) from error
    return _join(tree, read_state(path))


def read_state(path: Path) -> dict[str, Any]:
    """Everything in a complete checkpoint that is not a tensor."""
    return json.loads((path / "state.json").read_text())


def _run(function: Callable[..., Any], tensors: dict[str, Tensor], collectively: bool = True, **options: Any) -> None:
    # For good: a filter that ends with this call is not safe, as a training may run beside it in another thread.
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    alone = not (collectively and dist.is_initialized())
    function({name: x.detach() for name, x in tensors.items()}, no_dist=alone, **options)


def _causes(error: dcp.api.CheckpointException) -> str:
    return "; ".join(dict.fromkeys(str(cause) for cause, _trace in error.failures.values()))


def last_step(folder: Path) -> int:
    """Optimiser steps done at the last checkpoint, damaged or not; 0 if there is none."""
    return max(map(step_of, _all(folder)), default=0)


def step_of(path: Path) -> int:
    """Optimiser steps done at a checkpoint."""
    return int(path.name.removeprefix("step-"))


def _remove(path: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that a partly removed one does not look complete."""
    gone = path.with_suffix(".old.tmp")
    path.rename(gone)
    shutil.rmtree(gone)


def _all(folder: Path) -> list[Path]:
    """Published checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def _fault(path: Path) -> str | None:
    """A description of what is wrong with a checkpoint; None if nothing is.

    Raises:
        ValueError: A newer version wrote it.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        version, files = manifest["version"], dict(manifest["files"])
        if isinstance(version, int) and version > VERSION:
            raise _Newer(f"{path}: version {version}, this ardistill reads {VERSION}; update the package")
        if "state.json" not in files:
            return "its manifest lacks state.json"
        for name, facts in files.items():
            if Path(name).name != name:  # a path could lead out of the folder
                return f"its manifest names {name!r}"
            if not (path / name).is_file():
                return f"{name} is missing"
            now = _facts(path / name)
            if now["bytes"] != facts["bytes"]:
                return f"{name} is cut: expected {facts['bytes']} bytes, got {now['bytes']}"
            if now != facts:
                return f"{name} is not what its checksum says"
        if strange := {file.name for file in path.iterdir()} - set(files) - {"manifest.json"}:
            return f"{min(strange)} is not in its manifest"
    except _Newer as error:
        raise ValueError(str(error)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read: {type(error).__name__}"
    return None


class _Newer(Exception):
    """A newer version of the package wrote the checkpoint."""


def _facts(file: Path) -> dict[str, Any]:
    """Size and checksum of a file."""
    with open(file, "rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
