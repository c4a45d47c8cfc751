"""Copies between host and device that neither of them waits for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Transfers:
    """Copies from and to a device; on CUDA, beside the work that goes on there.

    Args:
        device: The device; on any other than CUDA, copies are complete when they return.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def pin(self, tensor: Tensor) -> Tensor:
        """A tensor of the host that CUDA copies to the device without a wait."""
        return tensor if self._stream is None else tensor.pin_memory()

    def to_host(self, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor to the host; the copy is complete once `mark` says so."""
        if self._stream is None:
            return tensor.cpu()
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            copy.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not used again before it is copied
        return copy

    def mark(self) -> Callable[[], None]:
        """A function that waits, in any thread, until all copies to the host that began before are complete."""
        return (lambda: None) if self._stream is None else self._stream.record_event().synchronize
