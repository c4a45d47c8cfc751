"""What every part is given: its size, its device, models with random weights, and a place for its figures."""

from __future__ import annotations

import functools
import math
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from gpu_parts.measure import Run, count_flops, paired, release, timed
from torch import Tensor

from ardistill import Student, StudentConfig, Teacher, TrajectoryDataset, record, sample
from ardistill.core.knots import Knots
from ardistill.student.lora import share_weights
from ardistill.teacher import knots_from_scheduler

Figures = dict[str, Any]
"""Figure -> number, or text."""


@dataclass(frozen=True)
class Size:
    """Sizes of what is measured."""

    layers: int
    heads: int
    head_dim: int
    latents: int
    """Edge of the latents."""
    history_layers: int
    batch: int
    """Trajectories of a training pass."""
    many: int
    """Images of a large batch."""
    record: int
    """Trajectories that are recorded."""
    shard: int
    """Trajectories of a shard."""
    solver_steps: int
    """Steps of the recorded teacher; a sample of the teacher takes one more."""
    steps: tuple[int, int]
    """First and last training step that are timed."""
    seconds: float
    """How long a call is repeated, for calls of a second or more several times as long."""


SIZES = {
    "xl": Size(28, 16, 72, 32, 6, 8, 64, 384, 64, 24, (20, 60), 1.0),
    "tiny": Size(3, 2, 8, 8, 2, 2, 2, 4, 2, 8, (1, 3), 0.0),
}


def last_line(error: Exception) -> str:
    """The line that a traceback ends with: the kind of the error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


class NotMeasuredError(Exception):
    """This machine lacks what an arm needs, or the time of its part is over."""


class Bench:
    """One run of the parts on one device.

    Args:
        size: A key of ``SIZES``.
        device: Where everything is measured.
        reference: A checkout of the authors' code, or None.
        report: Receives the name and the figures of each arm.
    """

    def __init__(
        self, size: str, device: torch.device, reference: str | None, report: Callable[[str, Figures], None]
    ) -> None:
        self.name, self.size, self.device, self.reference, self.report = size, SIZES[size], device, reference, report
        self.folder = tempfile.TemporaryDirectory(prefix="ardistill-gpu-")
        self.until = math.inf
        """When the present part's time is over, by ``time.perf_counter``."""
        self._counted: dict[str, float] = {}

    def arm(self, name: str, run: Callable[[], Figures]) -> None:
        """Report an arm's figures, or why there are none, such as that the part's time is over; the next arm goes on.

        What earlier arms compiled is forgotten first, as the graphs of many students would stand side by side in one
        function and each call would look for its own; kernels are kept by Inductor's cache.
        """
        torch.compiler.reset()
        try:
            if time.perf_counter() > self.until:
                raise NotMeasuredError("the time of this part was over")
            self.report(name, run())
        except NotMeasuredError as error:
            self.report(name, {"not_measured": str(error)})
        except Exception as error:
            traceback.print_exc()
            self.report(name, {"error": last_line(error)})
        release(self.device)

    def timed(self, run: Run, times_as_long: float = 1.0) -> Figures:
        """Milliseconds of a call; `gpu_parts.measure.timed` documents them."""
        return timed(run, self.device, times_as_long * self.size.seconds)

    def beside(self, base: list[Run], run: Run) -> Figures:
        """Milliseconds of a call and its ratio to the baseline, if there is one."""
        return paired(base[0], run, self.device, 2 * self.size.seconds) if base else self.timed(run)

    def transformer(self, layers: int | None = None) -> Any:
        """A DiT with random weights, on the device."""
        size = self.size
        torch.manual_seed(0)
        with self.device:
            transformer = DiTTransformer2DModel(
                num_layers=size.layers if layers is None else layers,
                num_attention_heads=size.heads,
                attention_head_dim=size.head_dim,
                sample_size=size.latents,
                in_channels=4,
                out_channels=8,
            )
        return transformer.to(self.device).eval()

    @functools.cached_property
    def knots(self) -> Knots:
        """Those of a four-step student."""
        return knots_from_scheduler(DDIMScheduler(), 4)

    def noise(self, count: int) -> Tensor:
        """Noise of images, (count, 4, h, w)."""
        return torch.randn(count, 4, self.size.latents, self.size.latents, device=self.device)

    def labels(self, count: int) -> dict[str, Tensor]:
        """A condition of this many rows."""
        return {"class_labels": torch.arange(count, device=self.device)}

    def students(self) -> dict[str, StudentConfig]:
        """The students that are compared, by name, the most important ones first; the first has no history."""
        n, depth = self.size.history_layers, self.size.layers
        return {
            "N=0": StudentConfig(self.knots, 0),
            f"N={n} gated M2": StudentConfig(self.knots, n, "M2"),
            f"N={n} softmax": StudentConfig(self.knots, n, "M4", gated=False),
            f"N={n} gated": StudentConfig(self.knots, n, "M4"),
            f"N={depth} gated M2": StudentConfig(self.knots, depth, "M2"),
            f"N={depth} softmax": StudentConfig(self.knots, depth, "M4", gated=False),
            f"N={depth} gated": StudentConfig(self.knots, depth, "M4"),
        }

    def sample_flops(self, name: str, transformer: Any) -> float:
        """Operations of a sample of one image, of a student by its name."""
        if name not in self._counted:
            student = student_on(transformer, self.students()[name]).eval()
            self._counted[name] = count_flops(drawer(student, self.noise(1), self.labels(1), "eager", "no"))
        return self._counted[name]

    @functools.cached_property
    def teacher(self) -> Teacher:
        """A teacher with random weights."""
        return Teacher(self.transformer(), DDIMScheduler(), guidance_scale=1.5)

    @functools.cached_property
    def data(self) -> TrajectoryDataset:
        """A few trajectories to train on."""
        folder, count = Path(self.folder.name) / "trajectories", 4 * self.size.batch
        record(self.teacher, folder, count, solver_steps=4, num_steps=(4,), shard_size=count, progress=False)
        return TrajectoryDataset(folder, 4)


def student_on(transformer: Any, config: StudentConfig) -> Student:
    """A student on a transformer's own weights, so that several of them fit on a card."""
    return Student(share_weights(transformer), config)


def drawer(student: Student, noise: Tensor, condition: dict[str, Tensor], way: str, mixed_precision: str) -> Run:
    """A call that draws a batch, ``eager``, ``compiled``, ``graphed`` or ``compiled and graphed``.

    Raises:
        NotMeasuredError: This machine has no GPU to draw in this way.
    """
    if "compiled" in way:
        student.compile()
    if "graphed" not in way:
        return lambda: sample(student, noise, condition, mixed_precision)
    if noise.device.type != "cuda":
        raise NotMeasuredError("CUDA graphs need a GPU")
    graph = student.graphed(len(noise), mixed_precision)
    return lambda: graph(noise, condition)
