"""Checkpoints that are whole or not there: sharded safetensors, a checksum of every file, the last few kept.

A checkpoint is a folder of safetensors files, one or more per process, written by torch's distributed checkpoint, so
that it loads into any number of processes, sharded or not; ``state.json`` holds what is no tensor, ``manifest.json``
the checksums. It is made under a temporary name and renamed: a name without ``.tmp`` is only ever that of a whole one,
unless the disk damaged it, which the checksums show. Nothing in it is a pickle.
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

from ardistill.files.store import sync_folder, write_whole

VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
_LOG = logging.getLogger(__name__)


def _split(tree: dict[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by their dotted path, and the tree without them."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            tensors[prefix + key] = value
        elif isinstance(value, dict):
            own, rest[key] = _split(value, f"{prefix}{key}.")
            tensors |= own
        else:
            rest[key] = value
    return tensors, rest


def _join(tree: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The tree with its tensors, which were filled in place, and else what was saved."""
    saved = {key: _join(tree.get(key, {}), value) if isinstance(value, dict) else value for key, value in rest.items()}
    return saved | {key: value for key, value in tree.items() if isinstance(value, Tensor)}


def save(folder: str | Path, step: int, tree: dict[str, Any], keep: int, good: int = 0) -> Path:
    """Publish a checkpoint, then drop all but the newest ``keep`` and a good one. Called by every process at once.

    Args:
        folder: Of all checkpoints of a run; seen by every process.
        step: Optimiser steps done.
        tree: Nested dicts of tensors (whole on every process, or DTensors) and of what JSON can hold; keys are strings.
        keep: 1 or more.
        good: Step of one to keep however old it is, if it is there.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It cannot be written; those before it are as they were.
    """
    folder = Path(folder)
    path, temporary = folder / f"step-{step:08d}", folder / f"step-{step:08d}.tmp"
    first, many = not dist.is_initialized() or dist.get_rank() == 0, dist.is_initialized()
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.tmp"):  # of a process that was killed
            shutil.rmtree(stale)
        temporary.mkdir()
    if many:
        dist.barrier()
    tensors, rest = _split(tree)
    writer = dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    try:
        _run(dcp.save, tensors, storage_writer=writer)
    except dcp.api.CheckpointException as error:  # of whatever process
        if first:
            shutil.rmtree(temporary, ignore_errors=True)  # what is full has room again
        raise OSError(
            f"{path} cannot be written ({_causes(error)}); the checkpoints before it are whole: free space there, then "
            "the same command again goes on"
        ) from error
    if first:
        write_whole(temporary / "state.json", json.dumps(rest).encode())
        files = {file.name: _facts(file) for file in sorted(temporary.iterdir())}
        write_whole(temporary / "manifest.json", json.dumps({"version": VERSION, "files": files}, indent=1).encode())
        sync_folder(temporary)
        for broken in _all(folder):  # of this step or a later one: else training had begun there
            if step_of(broken) >= step:
                _remove(broken)
        temporary.rename(path)
        sync_folder(folder)
        for old in _all(folder)[keep:]:
            if step_of(old) != good:
                _remove(old)
    if many:
        dist.barrier()
    return path


def newest(folder: str | Path) -> Path | None:
    """The last whole checkpoint; each that is not whole and had to be passed over is told of in one line.

    Returns:
        None: There is none yet.

    Raises:
        ValueError: There are some, none of them whole, or a newer version wrote the last one.
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
    """See that one checkpoint is whole.

    Raises:
        ValueError: It is not, or a newer version wrote it.
    """
    fault = _fault(path)
    if fault is not None:
        raise ValueError(f"{path} is broken ({fault}); take another checkpoint")


def load(path: Path, tree: dict[str, Any], collectively: bool = True) -> dict[str, Any]:
    """Fill the tensors of a tree, in place.

    Args:
        path: A whole checkpoint.
        tree: As it was saved or a part of it, with tensors of the same names and shapes; they may be sharded in another
            way.
        collectively: Every process calls it at once, and each reads what it holds; else this one reads by itself.

    Returns:
        The tree with what was saved.

    Raises:
        ValueError: It holds other tensors than the tree.
    """
    tensors, _ = _split(tree)
    try:
        reader = dcp.HuggingFaceStorageReader(str(path))
        _run(dcp.load, tensors, collectively, storage_reader=reader)
    except dcp.api.CheckpointException as error:
        raise ValueError(
            f"{path} does not fit this run ({_causes(error)}); resume it with the version that wrote it"
        ) from error
    return _join(tree, json.loads((path / "state.json").read_text()))


def _run(function: Callable[..., Any], tensors: dict[str, Tensor], collectively: bool = True, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        alone = not (collectively and dist.is_initialized())
        function({name: x.detach() for name, x in tensors.items()}, no_dist=alone, **options)


def _causes(error: dcp.api.CheckpointException) -> str:
    return "; ".join(dict.fromkeys(str(cause) for cause, _trace in error.failures.values()))


def last_step(folder: Path) -> int:
    """Optimiser steps done at the last checkpoint, whole or not; 0 if there is none."""
    return max(map(step_of, _all(folder)), default=0)


def step_of(path: Path) -> int:
    """Optimiser steps done at a checkpoint."""
    return int(path.name.removeprefix("step-"))


def _remove(path: Path) -> None:
    """First of all its name: half of a checkpoint must not look like one."""
    gone = path.with_suffix(".old.tmp")
    path.rename(gone)
    shutil.rmtree(gone)


def _all(folder: Path) -> list[Path]:
    """Published checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None.

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
            if Path(name).name != name:  # never a path that leads out of the folder
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
    pass


def _facts(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
