"""Memory that a device needs to record trajectories, to train a student and to draw images with it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ardistill.config import CostConfig

LINEAR_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.5625}
"""Bytes of a weight of a linear layer; nf4 has a float32 scale for every 64 weights. What is not linear stays in
bfloat16 where linear layers have fewer bits."""
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2 * (1 + 4 / 256)}
"""Bytes per trained weight of both moments; 8-bit moments have a float32 scale each for every 256."""


@dataclass(frozen=True)
class Weights:
    """Numbers of a student's weights."""

    total: int
    trained: int
    linear: int
    """Weights of the teacher's linear layers, which int8 and nf4 quantise."""
    adapters: int = 0
    """Weights of adapters, which the teacher does not have."""

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """Count a student's weights; those of adapters are told by their names."""
        layers = {name: x for name, x in model.named_modules() if isinstance(x, nn.Linear) and "lora_" not in name}
        named = [*model.named_parameters()]
        return cls(
            total=sum(p.numel() for _, p in named),
            trained=sum(p.numel() for _, p in named if p.requires_grad),
            linear=sum(x.weight.numel() for x in layers.values()),
            adapters=sum(p.numel() for name, p in named if "lora_" in name),
        )

    def teacher_bytes(self, kind: str) -> int:
        """Bytes of the teacher's weights, none of which is trained."""
        count = self.total - self.trained if self.adapters else self.total
        return int(LINEAR_BYTES[kind] * self.linear + (4 if kind == "float32" else 2) * (count - self.linear))


@dataclass(frozen=True)
class Activations:
    """Bytes that a training pass keeps for its backward pass: a part grows with the batch, the other does not."""

    fixed: int
    per_row: int
    blocks: int
    """Number of blocks, of which one at a time is on the device where activations are offloaded."""

    def part(self, count: int) -> Activations:
        """One of ``count`` equal parts."""
        return Activations(self.fixed // count, self.per_row // count, self.blocks)

    def and_also(self, other: Activations) -> Activations:
        """Both at once."""
        return Activations(self.fixed + other.fixed, self.per_row + other.per_row, self.blocks)

    def bytes(self, rows: int, offloaded: bool = False) -> int:
        """Bytes on the device for a batch of ``rows`` trajectories."""
        whole = self.fixed + self.per_row * rows
        return whole // self.blocks if offloaded else whole


@dataclass(frozen=True)
class Memory:
    """What was counted on modules of fake tensors, from which every stage's memory follows."""

    weights: Weights
    activations: Callable[[CostConfig], Activations]
    """Activations of a configuration's checkpointing and folding; counted when asked for."""
    evaluation: int
    """Bytes alive at once in one guided evaluation of the teacher for one image, without its weights."""
    drawing: int
    """The same of the student's drawing of one image, keys and values of earlier steps included."""


def stages(counted: Memory, config: CostConfig) -> dict[str, dict[str, int]]:
    """Bytes per device of recording, distilling, fine-tuning and drawing, by what takes them.

    ``record`` and ``sample`` draw one image at a time. Text encoders and the VAE do not count: they leave the device
    when they are done. Gradients, moments and EMA belong to trained weights only, and sharding divides them.

    Args:
        counted: What was counted.
        config: What is planned, with ``weights`` resolved.
    """
    weights, devices = counted.weights, config.num_devices
    teacher = weights.teacher_bytes(config.weights)
    held = (teacher + 4 * weights.trained if config.lora_rank else 4 * weights.total) // devices
    activations = counted.activations(config)
    # A step's gradients wait for those of all steps before they are added to those of earlier passes.
    twice = config.sequential and config.gradient_accumulation_steps > 1
    distill = {
        "weights": held,
        "gradients": (8 if twice else 4) * weights.trained // devices,
        "optimizer": int(OPTIMIZER_BYTES[config.optimizer] * weights.trained) // devices,
        "ema": 0 if config.ema_device == "cpu" else 4 * weights.trained // devices,
        "activations": activations.bytes(config.batch_size, config.offload_activations),
    }
    judged = activations.bytes(config.batch_size, config.offload_activations) // config.num_steps
    drawn = (4 if config.weights == "float32" else 2) * weights.total
    return {
        "record": {"weights": teacher, "evaluation": counted.evaluation},
        "distill": distill,
        "finetune": distill | {"discriminator": teacher + judged},
        "sample": {"weights": drawn, "drawing": counted.drawing},
    }


class Alive(TorchDispatchMode):
    """Adds up the bytes of tensors that are made within it and alive, and keeps the most at once in ``peak``.

    Args:
        known: Tensors that do not count, such as weights.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {id(x.untyped_storage()): x for x in known}
        self._sizes: dict[int, int] = {}
        self.now, self.peak = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = id(storage)
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
