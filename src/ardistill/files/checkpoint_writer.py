"""Writes a run's checkpoints, on an accelerator beside the training: from a copy in host memory, by a thread."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ardistill.files import checkpoints

_LOG = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes the checkpoints of one run, one after the other; a context whose end waits for the last one.

    Args:
        folder: Folder of all checkpoints of the run.
        keep: How many to keep, 1 or more, beside the last good one.
        aside: Whether a thread writes while the training goes on, from a copy in host memory. Not for several
            processes, whose collective calls would meet those of the training; and not worth it for a training on the
            CPU, whose memory and cores the copy and the thread would take.
    """

    def __init__(self, folder: Path, keep: int, aside: bool) -> None:
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoints") if aside else None
        self._written: Future[Path] | None = None
        """The checkpoint that is being written."""
        self._copies: dict[str, Tensor] = {}
        """Tensors of the last checkpoint, in host memory, which the next one reuses."""

    def save(self, step: int, tree: dict[str, Any], good: int) -> None:
        """Write a checkpoint, or begin to, once the one before it is written.

        Args:
            step: Optimiser steps done.
            tree: As for `checkpoints.save`; it may change as soon as this returns.
            good: Step of a checkpoint to keep however old it is.

        Raises:
            OSError: This checkpoint or the one before it cannot be written; those before that are unchanged.
        """
        if self._thread is None:
            checkpoints.save(self.folder, step, tree, self.keep, good)
            return
        self.wait()
        tensors, rest = checkpoints.split(tree)
        copied = self._copy(tensors)
        copies = {name: self._copies[name] for name in tensors}
        self._written = self._thread.submit(self._write, copied, step, copies, json.dumps(rest).encode(), good)

    def _copy(self, tensors: dict[str, Tensor]) -> torch.cuda.Event | None:
        """Copy tensors to host memory; on CUDA the copies are queued, and the event tells when they are done."""
        copied = None
        for name, x in tensors.items():
            if name not in self._copies:
                self._copies[name] = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)
            self._copies[name].copy_(x.detach(), non_blocking=x.is_cuda)
            copied = copied or (torch.cuda.Event() if x.is_cuda else None)
        if copied is not None:
            copied.record()
        return copied

    def _write(
        self, copied: torch.cuda.Event | None, step: int, copies: dict[str, Tensor], rest: bytes, good: int
    ) -> Path:
        if copied is not None:
            copied.synchronize()
        return checkpoints.write(self.folder, step, copies, rest, self.keep, good)

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete.

        Raises:
            OSError: It could not be written; the ones before it are unchanged.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception as error:
            if kind is None:
                raise
            _LOG.warning("%s", error)  # beside the error that ended the training
        finally:
            if self._thread is not None:
                self._thread.shutdown()
