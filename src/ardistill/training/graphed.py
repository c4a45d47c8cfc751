"""A training pass as one CUDA graph: all kernels of forward and backward pass start at once, no Python between them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ardistill.config import TrainingConfig
from ardistill.training.batches import Batch

BEFORE = 3
"""Passes that run as they are before one is captured: libraries allocate and blocks are compiled in them."""
_LOG = logging.getLogger(__name__)


def graphs(config: TrainingConfig, device: torch.device, num_processes: int, critic: bool) -> bool:
    """Whether passes are to be held by a CUDA graph: where one can hold them, unless the user asked for none.

    Args:
        config: Options of the training.
        device: Where it runs.
        num_processes: Processes that train together.
        critic: Whether a critic is trained along.

    Raises:
        ValueError: A graph was asked for and cannot be had.
    """
    possible = device.type == "cuda" and num_processes == 1 and not critic
    if config.cuda_graph and not possible:
        raise ValueError(
            "cuda_graph needs a single process on CUDA, and regression alone, without a critic; got "
            f"{num_processes} process(es) on {device.type}: leave it out"
        )
    return possible and config.cuda_graph is not False and not config.graph_hindrance


class GraphedPass:
    """Runs training passes: the first ones as they are, then all of one shape as a CUDA graph.

    The graph copies a batch into tensors of its own and leaves the gradients in those that it made. It holds the memory
    of a pass until the training ends. Batches of another shape, or with conditions that are read on the host, run as
    they are; so do all, with a warning, if no graph can hold the pass of this transformer, which may wait for the
    device or copy to it.

    Args:
        run: Forward and backward pass of a batch. Returns what is reported of it, detached.
        parameters: The trained parameters, whose gradients are None when a pass begins.
    """

    def __init__(self, run: Callable[[Batch], Tensor], parameters: Sequence[nn.Parameter]) -> None:
        self._run, self._parameters = run, parameters
        self._to_come: int | None = BEFORE
        """Passes until one is captured; None where no graph can hold one."""
        self._graph = torch.cuda.CUDAGraph()
        self._held: Batch | None = None
        """The graph's own inputs."""
        self._reported = torch.zeros(())
        self._gradients: list[Tensor | None] = []

    def __call__(self, batch: Batch) -> Tensor:
        """Run a pass, which leaves gradients in the parameters; returns what is reported, valid until the next one."""
        if self._held is None and self._to_come is not None and not _host_reads(batch):
            self._to_come -= 1
            if self._to_come < 0:
                self._capture(batch)
        if self._held is None or _shape(batch) != _shape(self._held):
            return self._run(batch)
        for held, given in zip(_tensors(self._held), _tensors(batch), strict=True):
            held.copy_(given)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._reported

    def _capture(self, batch: Batch) -> None:
        """Record a pass without running it."""
        held = batch._replace(
            inputs=batch.inputs.clone(),
            targets=batch.targets.clone(),
            condition={name: x.clone() for name, x in batch.condition.items()},
        )
        generator = torch.cuda.default_generators[batch.inputs.get_device()]
        random = generator.clone_state()
        try:
            # Other threads read batches and write checkpoints meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._reported = self._run(held)
        except RuntimeError as error:
            self._to_come = None
            generator.graphsafe_set_state(random)  # that of the capture cannot be used outside of it
            torch.cuda.empty_cache()
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            _LOG.warning("training goes on without a CUDA graph, which cannot hold its passes: %s", why)
        else:
            self._held, self._gradients = held, [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None


def _tensors(batch: Batch) -> list[Tensor]:
    return [batch.inputs, batch.targets, *(batch.condition[name] for name in sorted(batch.condition))]


def _shape(batch: Batch) -> Any:
    """What a pass depends on besides the values of its tensors."""
    return batch.on_policy, sorted(batch.condition), [(x.shape, x.dtype) for x in _tensors(batch)]


def _host_reads(batch: Batch) -> bool:
    return any(x.device != batch.inputs.device for x in batch.condition.values())
