"""Sampling as one CUDA graph: all kernels of all steps are started at once, without Python between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ardistill.families import Condition
from ardistill.student.model import FewStepModel
from ardistill.student.sample import draw_steps, placed_inputs


class GraphedSampler:
    """`ardistill.student.sample` of up to a number of rows, captured once for each shape of its inputs.

    The graph holds the student's weights where they are now: make another one after moving or converting the student.
    Weights that change in place, in training, are seen. One thread at a time may draw.

    Args:
        student: A student on CUDA, compiled or not.
        batch_size: Rows of the graph. Fewer are drawn as the first rows of it.
        mixed_precision: As for ``sample``.

    Raises:
        ValueError: The student is not on CUDA, or there is no row.
    """

    def __init__(self, student: FewStepModel, batch_size: int, mixed_precision: str = "auto") -> None:
        if student.device.type != "cuda":
            raise ValueError(
                f"expected a student on CUDA, whose graphs hold a sample, got one on {student.device.type}; draw with "
                "ardistill.sample, or move the student first"
            )
        if batch_size < 1:
            raise ValueError(f"expected a batch_size of 1 row or more, got {batch_size}")
        self.student, self.batch_size, self.mixed_precision = student, batch_size, mixed_precision
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, Condition, Tensor]] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()

    @torch.no_grad()
    def __call__(self, noise: Tensor, condition: Condition) -> Tensor:
        """Draw latents from noise; returns each step's estimate, (b, s, c, h, w), as ``sample`` does.

        Args:
            noise: x_T, (b, c, h, w), b of ``batch_size`` at most.
            condition: One row per sample.

        Raises:
            ValueError: There are too many rows, ``sample`` refuses them, or this class of transformer copies to the
                device or waits for it in its forward, so that no graph can hold it.
        """
        rows = len(noise)
        if rows > self.batch_size:
            raise ValueError(f"expected {self.batch_size} rows or fewer, which the graph was made for, got {rows}")
        noise, condition = placed_inputs(self.student, noise, condition)
        noise, condition = self._padded(noise), {name: self._padded(x) for name, x in condition.items()}
        # What is read on the host is part of the graph itself.
        read = {name: tuple(x.flatten().tolist()) for name, x in condition.items() if x.device.type == "cpu"}
        shapes = {name: (x.shape, x.dtype) for name, x in condition.items()}
        key = (noise.shape, *shapes.items(), *read.items())
        if key not in self._graphs:
            self._graphs[key] = self._capture(noise.clone(), {name: x.clone() for name, x in condition.items()})
        graph, held_noise, held_condition, estimates = self._graphs[key]
        held_noise.copy_(noise)
        for name, value in condition.items():
            held_condition[name].copy_(value)
        graph.replay()
        return estimates[:rows].clone()

    def _padded(self, x: Tensor) -> Tensor:
        """Repeat the last row of a tensor until there are as many rows as the CUDA graph was captured for."""
        return torch.cat([x, x[-1:].expand(self.batch_size - len(x), *x.shape[1:])])

    def _capture(self, noise: Tensor, condition: Condition) -> tuple[torch.cuda.CUDAGraph, Tensor, Condition, Tensor]:
        """Draw three times to warm up, as libraries allocate then, and once while the graph is recorded."""
        beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                draw_steps(self.student, noise, condition, self.mixed_precision)
        torch.cuda.current_stream().wait_stream(beside)
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                estimates = draw_steps(self.student, noise, condition, self.mixed_precision)
        except RuntimeError as error:
            raise ValueError(
                f"{self.student.class_name} cannot be held by a CUDA graph ({str(error).splitlines()[0]}); draw with "
                "ardistill.sample and student.compile()"
            ) from error
        return graph, noise, condition, estimates
