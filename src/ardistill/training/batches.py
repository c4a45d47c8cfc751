"""The batches of a training: each follows from seed, pass and process alone, and is read while the pass before runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from accelerate.utils.operations import recursively_apply
from torch import Tensor

from ardistill.config import TrainingConfig
from ardistill.families import Condition
from ardistill.student import Student
from ardistill.training.losses import inputs_and_targets
from ardistill.trajectories import TrajectoryDataset

T = TypeVar("T")
_AHEAD = 8
"""Passes whose trajectories are fetched from a remote store at a time, if the data keeps as many shards open."""
_PATIENCE = 5.0
"""Seconds that the end of a training waits for a read that nobody needs any more."""


class Batch(NamedTuple):
    """Trajectories of one forward pass."""

    inputs: Tensor
    """Teacher-forced input of each step, (b, s, c, h, w)."""
    targets: Tensor
    """Target of each step, (b, s, c, h, w)."""
    condition: Condition
    """One row per trajectory."""
    on_policy: bool
    """Whether each step is given the student's own estimate instead of ``inputs``."""
    generator: torch.Generator
    """Source of further random draws of this pass, on the CPU."""


@contextmanager
def batches(
    data: TrajectoryDataset, student: Student, config: TrainingConfig, accelerator: Accelerator, first_step: int
) -> Iterator[Iterator[Batch]]:
    """Context that gives the batches of a run from a step on, one for each forward pass.

    A batch follows from seed, pass and process alone, so that a resumed run needs no position in the data and a batch
    may be read early: one pass ahead in a thread, if the data allows it.

    Args:
        data: Trajectories.
        student: Tells the target, and which part of a condition stays on the host.
        config: Batch size, seed, number of steps and kind of inputs.
        accelerator: Tells the device and this process's number.
        first_step: Optimiser steps done.
    """
    source, parts = _Source(data, student, config, accelerator), config.gradient_accumulation_steps
    passes = range(first_step * parts, config.max_steps * parts)
    with _read_ahead(source.draw, passes) if data.reads_ahead else nullcontext(map(source.draw, passes)) as drawn:
        yield (source.prepare(number, drawn) for number in passes)


class _Drawn(NamedTuple):
    """A batch as it was read."""

    tensors: dict[str, Any]
    """``states``, ``denoised`` and ``condition``: in CUDA's memory for a CUDA device, else in the host's."""
    on_policy: bool
    generator: torch.Generator
    copied: torch.cuda.Event | None
    """Recorded behind the copies to a CUDA device."""


class _Source:
    """Draws batches and prepares them for a pass."""

    def __init__(
        self, data: TrajectoryDataset, student: Student, config: TrainingConfig, accelerator: Accelerator
    ) -> None:
        self.data, self.student, self.config, self.accelerator = data, student, config, accelerator
        device = accelerator.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        """Stream on which batches are copied, beside the one that the model runs on."""

    def _seed(self, number: int) -> int:
        """Seed of a pass of this process."""
        accelerator = self.accelerator
        return self.config.seed * 1_000_003 + number * accelerator.num_processes + accelerator.process_index

    def _rows(self, number: int) -> tuple[Tensor, torch.Generator]:
        """Numbers of the trajectories of a pass, and the generator that drew them."""
        generator = torch.Generator().manual_seed(self._seed(number))
        return self.data.draw(self.config.batch_size, generator), generator

    def draw(self, number: int) -> _Drawn:
        """Read the trajectories of a pass. Called in any thread: nothing of the process's random state is used."""
        config = self.config
        later = range(number, min(number + _AHEAD, config.max_steps * config.gradient_accumulation_steps))
        self.data.prefetch(self._rows(x)[0] for x in later)
        rows, generator = self._rows(number)
        tensors = self.data.batch(rows)
        step = number // config.gradient_accumulation_steps
        share = {"teacher": 0.0, "student": 1.0, "mixed": config.student_share * step / config.max_steps}
        on_policy = float(torch.rand((), generator=generator, device="cpu")) < share[config.inputs]
        copied = None
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                pinned = recursively_apply(torch.Tensor.pin_memory, tensors)
                tensors = self._placed(pinned)
                copied = self._stream.record_event()
        return _Drawn(tensors, on_policy, generator, copied)

    def _placed(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The tensors on the device, except for what the family reads on the host."""
        device, condition = self.accelerator.device, tensors["condition"]
        placed = send_to_device({**tensors, "condition": {}}, device, non_blocking=True)
        return {**placed, "condition": self.student.family.place(condition, device)}

    def prepare(self, number: int, drawn: Iterator[_Drawn]) -> Batch:
        """Take the next batch and make it ready for its pass. Called in the main thread, when the pass begins."""
        torch.manual_seed(self._seed(number))  # for dropout inside a model
        tensors, on_policy, generator, copied = next(drawn)
        if copied is not None:
            stream = torch.cuda.current_stream(self.accelerator.device)
            stream.wait_event(copied)
            recursively_apply(lambda x: x.record_stream(stream) if x.is_cuda else x, tensors)  # in use until then
        tensors = self._placed(tensors)
        if self.config.shard and self.config.inputs == "mixed":
            # Weights are gathered at each step: a process that takes the other branch would block all of them.
            choice = [on_policy]
            broadcast_object_list(choice)
            on_policy = choice[0]
        inputs, targets = inputs_and_targets(
            tensors["states"], tensors["denoised"], self.data.knots, self.student.config.target
        )
        return Batch(inputs, targets, tensors["condition"], on_policy, generator)


@contextmanager
def _read_ahead(make: Callable[[int], T], numbers: range) -> Iterator[Iterator[T]]:
    """Context that gives ``make`` of each number, made in a thread while the caller uses the one before.

    An error of ``make`` is raised where its result is taken. The thread is a daemon's, so that a read that the network
    holds up does not hold up the end of the process.
    """
    asked: SimpleQueue[tuple[int, Future[T]] | None] = SimpleQueue()

    def work() -> None:
        while (request := asked.get()) is not None:
            number, future = request
            try:
                future.set_result(make(number))
            except BaseException as error:
                future.set_exception(error)
            del request, future  # the batch belongs to the caller alone

    def ask(number: int) -> Future[T]:
        future: Future[T] = Future()
        asked.put((number, future))
        return future

    def results() -> Generator[T, None, None]:
        ahead = ask(numbers[0]) if numbers else None
        for number in numbers:
            assert ahead is not None
            found = ahead.result()
            ahead = ask(number + numbers.step) if number != numbers[-1] else None
            yield found

    thread = Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        with closing(results()) as made:
            yield made
    finally:
        asked.put(None)
        thread.join(_PATIENCE)
