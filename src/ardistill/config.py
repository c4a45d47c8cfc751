"""How a student is trained, as data; no torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingConfig:
    """How a student is trained."""

    max_steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Trajectories per process and forward pass; the folded batch is num_steps times that."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimiser step."""
    learning_rate: float = 1e-4
    """Of AdamW."""
    lr_scheduler: str = "constant"
    """A name of diffusers.optimization.SchedulerType: constant, cosine, constant_with_warmup, ..."""
    lr_warmup_steps: int = 0
    """Optimiser steps until the full learning rate."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema_decay: float = 0.9999
    """Of the averaged weights, which the student ends with; reached gradually, 1 - (1 + step)^-0.75."""
    mixed_precision: str = "no"
    """no, or bf16: matrix products in bfloat16, weights, solver step and loss in float32."""
    gradient_checkpointing: bool = False
    """Less memory for more time."""
    sequential: bool = False
    """Run the steps one by one instead of folded into the batch: activations of one step, for a third more compute."""
    detach_history: bool = False
    """With sequential: let no gradient flow into the keys and values of earlier steps."""
    seed: int = 0
    """Of the batches."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints, each with a validation grid."""
    tracker: str | None = "tensorboard"
    """A tracker of accelerate (tensorboard, wandb, ...); null: metrics.jsonl alone."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"expected an ema_decay of 0 (none) to below 1, got {self.ema_decay}")
        if self.detach_history and not self.sequential:
            raise ValueError("detach_history needs sequential; the folded pass has no step to detach")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"unknown mixed_precision {self.mixed_precision!r}; known: no, bf16")


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of the quickstart; the defaults fit in ten minutes on two cores."""

    out: str = "runs/quickstart"
    """Run folder; the same command again resumes it."""
    num_trajectories: int = 2048
    """Recorded for training."""
    num_eval: int = 1000
    """Held-out noises that every arm is compared on."""
    max_steps: int = 120
    """Optimiser steps of each arm."""
    batch_size: int = 64
    """Trajectories per step of the 4-step arms; the 1-step arm takes four times as many, so that FLOPs are equal."""
    learning_rate: float = 5e-4
    """Of AdamW, for every arm."""
    history_layers: int = 2
    """N of the ARD arm, of 7 layers."""
    guidance_scale: float = 1.25
    """Of the teacher: the best of the sweep in its card."""
    seed: int = 0
    """Of the noise and of the batches."""


@dataclass(frozen=True)
class CostConfig:
    """What is to be planned."""

    teacher: str
    """An architecture's name (DiT-XL/2), a diffusers folder, a config.json or a Hub id, of which only the config is
    fetched."""
    num_steps: int = 4
    """S of the student."""
    history_layers: int = 6
    """N of the student; 0 is step distillation."""
    mask: str = "M4"
    """Of the history: M1 to M4."""
    solver_steps: int = 24
    """Of the teacher, each evaluated twice if it is guided."""
    guidance_scale: float = 1.5
    """Of the teacher; 1 is none."""
    batch_size: int = 64
    """Trajectories per device and training step."""
    mixed_precision: str = "no"
    """no or bf16."""
    gradient_checkpointing: bool = False
    """Keep the blocks' inputs alone, and the activations of one block."""
    num_devices: int = 1
    """Weights, gradients, optimiser and EMA are sharded over them."""
    num_trajectories: int = 100_000
    """To be recorded, kept at the knots of this student."""
    num_prompts: int = 0
    """Distinct ones, for a teacher of text."""
    max_steps: int = 300_000
    """Of the training."""
    text_tokens: int = 256
    """Length of a prompt's embedding."""
    height: int | None = None
    """Of the latents; the model's own if not given."""
    width: int | None = None
    """Same."""
    device: str | None = None
    """Where to time one evaluation (cpu, cuda), for hours of recording and training; not timed if not given."""
