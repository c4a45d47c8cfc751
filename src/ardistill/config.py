"""Options of training, quickstart and cost plan as data; torch is not imported, so that ``--help`` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


def _check(config: Any, least: int, *names: str) -> None:
    """Check that fields of a configuration are whole numbers of at least ``least``.

    Raises:
        ValueError: One of them is not.
    """
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < least:
            raise ValueError(f"expected {name} of {least} or more, got {value}")


def _check_real(config: Any, positive: bool, *names: str) -> None:
    """Check that fields of a configuration are finite numbers of at least 0, or above 0 if ``positive``.

    Raises:
        ValueError: One of them is not.
    """
    for name in names:
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 <= value < math.inf or (positive and not value):
            raise ValueError(f"expected {name} {'above 0' if positive else 'of 0 or more'}, got {value}")


def _check_known(config: Any, **known: tuple[str, ...]) -> None:
    """Check that fields of a configuration are among the values that each of them may have.

    Raises:
        ValueError: One of them is not.
    """
    for name, values in known.items():
        if getattr(config, name) not in values:
            raise ValueError(f"unknown {name} {getattr(config, name)!r}; known: {', '.join(values)}")


def _check_levels(noise_levels: tuple[float, float]) -> None:
    """Check a lowest and a highest noise level.

    Raises:
        ValueError: They are no shares, or the lowest is above the highest.
    """
    low, high = noise_levels
    if not 0 <= low <= high <= 1:
        raise ValueError(f"expected noise_levels from 0 to 1, least first, got {noise_levels}")


PRECISIONS = ("auto", "no", "bf16")
"""What ``mixed_precision`` may be."""
WEIGHTS = ("auto", "float32", "bfloat16", "int8", "nf4")
"""What ``weights`` may be: the type of the weights that are not trained."""
OPTIMIZERS = ("adamw", "adamw8bit")
"""What ``optimizer`` may be."""
EMA_DEVICES = ("auto", "cpu")
"""What ``ema_device`` may be."""


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a student's training."""

    max_steps: int = 1000
    """Number of optimiser steps."""
    batch_size: int = 64
    """Trajectories per process and forward pass; the folded batch has num_steps times as many rows."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimiser step."""
    learning_rate: float = 1e-4
    """AdamW's learning rate."""
    gate_rate: float = 30.0
    """Learning rate of the gates of layers with history, as a multiple of learning_rate."""
    lr_scheduler: str = "constant"
    """Learning rate schedule, a name in diffusers.optimization.SchedulerType: constant, cosine,
    constant_with_warmup, ..."""
    lr_warmup_steps: int = 0
    """Optimiser steps until the learning rate reaches its full value."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights (EMA), with which the student ends; at first it is
    1 - (1 + step)^-0.75, if that is less."""
    mixed_precision: str = "auto"
    """no, bf16 (matrix products in bfloat16; weights, solver step and loss stay in float32) or auto: bf16 on a GPU that
    computes in it, else no. A run that is resumed with auto goes on in the precision that it began with."""
    compile: bool | None = None
    """Compile the blocks of the transformer (torch.compile); null: on CUDA, where the run has 1,000 passes or more."""
    cuda_graph: bool | None = None
    """Hold the forward and backward pass as one CUDA graph, which starts all their kernels at once and keeps the memory
    of a pass; null: on CUDA in a single process, without a discriminator, accumulation, gradient_checkpointing,
    offload_activations or sequential."""
    optimizer: str = "adamw"
    """adamw, or adamw8bit: torchao's AdamW, whose two moments take 1 byte per parameter each instead of 4."""
    ema_device: str = "auto"
    """Where the averaged weights are kept: auto (with the weights) or cpu (in host memory, 4 bytes per trained
    parameter less on the device, for a copy of the weights to the host in each step)."""
    gradient_checkpointing: bool = False
    """Recompute each block's activations in the backward pass, which takes less memory and more time."""
    checkpoint_stride: int = 1
    """With gradient_checkpointing, recompute every n-th block only; the others keep their activations."""
    offload_activations: bool = False
    """Keep what the forward pass saves for the backward pass in host memory instead of the device's."""
    sequential: bool = False
    """Run the steps one after the other instead of folded into the batch, which keeps the activations of one step
    only and takes a third more compute."""
    inputs: str = "teacher"
    """Input of each step: teacher (the recorded states), student (the student's own estimates, starting from the
    recorded noise) or mixed (batches of both kinds, the student's increasingly often). The targets are always the
    teacher's."""
    student_share: float = 1.0
    """With inputs mixed, the share of batches with the student's inputs at the end; it rises linearly from 0."""
    through_steps: int = 0
    """With inputs student or mixed, the number of last steps through whose inputs gradients flow."""
    detach_history: bool = False
    """With sequential, stop gradients at the keys and values of earlier steps."""
    seed: int = 0
    """Seed of the batches."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints; a validation grid is drawn at each of them."""
    keep_checkpoints: int = 2
    """Number of most recent checkpoints that are kept; if the last one is damaged, the one before it is used."""
    shard: bool = False
    """Divide weights, gradients, optimiser and EMA over the processes (torch's fully_shard, FSDP2) instead of keeping
    a copy on each."""
    tracker: str | None = "tensorboard"
    """Tracker of accelerate for scalars and sample grids: tensorboard, wandb, trackio, ...; with null, only
    metrics.jsonl is written."""

    def __post_init__(self) -> None:
        _check(self, 1, "max_steps", "batch_size", "gradient_accumulation_steps", "checkpoint_every")
        _check(self, 1, "keep_checkpoints", "checkpoint_stride")
        _check(self, 0, "lr_warmup_steps", "through_steps")
        _check_real(self, True, "learning_rate", "gate_rate", "max_grad_norm")
        _check_real(self, False, "weight_decay", "ema_decay", "student_share")
        if type(self.seed) is not int or not abs(self.seed) < 2**43:  # a million times the seed has to fit in 64 bits
            raise ValueError(f"expected a seed of -2^43 to 2^43, got {self.seed}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"expected an ema_decay of 0 (none) to below 1, got {self.ema_decay}")
        if self.cuda_graph and self.graph_hindrance:
            raise ValueError(f"cuda_graph and {self.graph_hindrance} exclude each other; leave one of them out")
        if self.compile and self.shard:
            raise ValueError("compile and shard have not been tried together; leave one of them out")
        if self.shard and (self.optimizer == "adamw8bit" or self.ema_device == "cpu"):
            raise ValueError(
                "shard divides a float32 optimiser and the EMA over the devices; leave optimizer adamw8bit and "
                "ema_device cpu out"
            )
        if self.detach_history and not self.sequential:
            raise ValueError("detach_history needs sequential; the folded pass has no step to detach")
        if self.inputs not in ("teacher", "student", "mixed"):
            raise ValueError(f"unknown inputs {self.inputs!r}; known: teacher, student, mixed")
        if not 0 <= self.student_share <= 1:
            raise ValueError(f"expected a student_share of 0 to 1, got {self.student_share}")
        if self.through_steps and self.inputs == "teacher":
            raise ValueError("through_steps needs inputs student or mixed; the teacher's have no gradient")
        if self.checkpoint_stride > 1 and not self.gradient_checkpointing:
            raise ValueError("checkpoint_stride needs gradient_checkpointing; without it no block is recomputed")
        _check_known(self, optimizer=OPTIMIZERS, ema_device=EMA_DEVICES)
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"unknown mixed_precision {self.mixed_precision!r}; known: {', '.join(PRECISIONS)}")

    @property
    def graph_hindrance(self) -> str:
        """The first option with which no CUDA graph holds a pass; empty if there is none."""
        if self.gradient_accumulation_steps > 1:
            return "gradient_accumulation_steps"
        names = ("gradient_checkpointing", "offload_activations", "sequential", "shard")
        return next((name for name in names if getattr(self, name)), "")


METHODS = {"adversarial": "adversarial", "dmd": "matching"}
"""Method of ``finetune`` -> name of its options."""
LOSSES = ("hinge", "relativistic")
"""What ``loss`` of a discriminator may be."""
LEVELS = ("uniform", "knots")
"""What ``levels`` of a discriminator may be."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Options of the discriminator, its training and the weight of its loss."""

    loss: str = "hinge"
    """hinge, each image judged by itself by heads with spectral normalisation, or relativistic: each drawn image
    judged against a real one at the same noise level, by heads without it."""
    lora_rank: int = 0
    """Rank of adapters on the teacher's blocks that the heads read, trained with the heads; 0 leaves the blocks as they
    are."""
    weight: float = 1.0
    """Weight of the adversarial loss; with adaptive, of its gradient in the student's last layer relative to the
    gradient of the regression."""
    adaptive: bool = True
    """Balance both losses by their gradients in the student's last layer."""
    rise_steps: int = 0
    """Steps, after those of the warm-up, over which the weight rises from 0 in proportion."""
    warmup_steps: int = 100
    """First steps, in which only the discriminator is trained; the student draws without a backward pass, at a third
    of the cost."""
    learning_rate: float = 1e-3
    """Learning rate of the discriminator's AdamW."""
    hidden: int = 64
    """Hidden width of each head."""
    every: int = 1
    """Spacing of the heads: one head on every n-th block of the teacher."""
    levels: str = "uniform"
    """Noise levels at which the teacher reads the latents: uniform in noise_levels, or knots: those in noise_levels at
    which the student's own steps begin and end."""
    noise_levels: tuple[float, float] = (0.0, 0.5)
    """Lowest and highest noise level of the latents that the teacher reads, as shares of its solver's path."""
    num_levels: int = 1
    """Noise levels at which each image is read."""
    r1_weight: float = 0.0
    """Weight of the penalty on the discriminator's slope at real images, by finite differences; 0 leaves it out."""
    r2_weight: float = 0.0
    """The same at drawn images."""
    r1_noise: float = 0.01
    """Standard deviation of the noise that gives these finite differences: in the features, or with lora_rank in the
    latents."""
    max_grad_norm: float = 1.0
    """The discriminator's gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        _check_levels(self.noise_levels)
        _check(self, 0, "warmup_steps", "rise_steps", "lora_rank")
        _check(self, 1, "hidden", "every", "num_levels")
        _check_real(self, False, "weight", "r1_weight", "r2_weight")
        _check_real(self, True, "learning_rate", "r1_noise", "max_grad_norm")
        _check_known(self, loss=LOSSES, levels=LEVELS)


@dataclass(frozen=True)
class MatchingConfig:
    """Options of distribution matching: the fake score, its training and the weight of its loss."""

    weight: float = 1.0
    """Weight of the loss; with adaptive, of its gradient in the student's last layer relative to the gradient of the
    regression."""
    adaptive: bool = True
    """Balance both losses by their gradients in the student's last layer."""
    warmup_steps: int = 100
    """First steps, in which only the fake score is trained; the student draws without a backward pass."""
    updates: int = 5
    """Updates of the fake score for each step, on the same images at other noise levels."""
    lora_rank: int = 16
    """Rank of the fake score's adapters on the teacher's blocks."""
    learning_rate: float = 5e-4
    """Learning rate of the fake score's AdamW."""
    noise_levels: tuple[float, float] = (0.02, 0.98)
    """Lowest and highest noise level at which both networks denoise, as shares of the teacher's path."""
    max_grad_norm: float = 1.0
    """The fake score's gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        _check_levels(self.noise_levels)
        _check(self, 0, "warmup_steps")
        _check(self, 1, "updates", "lora_rank")
        _check_real(self, False, "weight")
        _check_real(self, True, "learning_rate", "max_grad_norm")


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of the quickstart; the defaults fit in ten minutes on two cores."""

    out: str = "runs/quickstart"
    """Run folder; the same command again resumes it."""
    num_trajectories: int = 2048
    """Number of trajectories recorded for training."""
    num_eval: int = 1000
    """Number of held-out trajectories that every arm is compared on."""
    max_steps: int = 120
    """Optimiser steps of each arm."""
    batch_size: int = 64
    """Trajectories per optimiser step of the 4-step arms; the 1-step arm takes four times as many, which is the same
    number of network evaluations."""
    learning_rate: float = 5e-4
    """AdamW's learning rate, the same for every arm."""
    knots: tuple[int, ...] = (0, 6, 15, 21, 24)
    """States of the teacher's 24 solver steps that the steps of the 4-step arms run between."""
    history_layers: int = 7
    """Number of layers (N, of 7) of the ARD arm that attend to earlier steps, through gates."""
    guidance_scale: float = 1.25
    """The teacher's guidance scale; the default is the best one in the sweep of its card."""
    seed: int = 0
    """Seed of the noise and of the batches."""

    def __post_init__(self) -> None:
        _check(self, 1, "num_trajectories", "num_eval", "max_steps", "batch_size")
        _check_real(self, True, "learning_rate")
        if not 0 <= self.history_layers <= 7:
            raise ValueError(f"expected 0 to 7 history layers (the depth), got {self.history_layers}")
        if len(self.knots) != 5 or [*self.knots] != sorted({0, *self.knots, 24}):
            raise ValueError(f"expected 5 knots, rising from 0 to 24 (the solver steps), got {[*self.knots]}")


@dataclass(frozen=True)
class CostConfig:
    """The distillation whose cost is counted."""

    teacher: str
    """An architecture's name (DiT-XL/2), a diffusers folder, a config.json or a Hub id, from which only the
    configuration is downloaded."""
    num_steps: int = 4
    """Number of steps of the student (S)."""
    history_layers: int = 6
    """Number of layers of the student (N, the lowest ones) that attend to earlier steps; 0 is step distillation."""
    mask: str = "M2"
    """Mask of the history, M1 to M4, as in distill."""
    solver_steps: int = 24
    """Number of steps of the teacher's solver; a guided step evaluates the teacher twice."""
    guidance_scale: float = 1.5
    """The teacher's guidance scale; 1 means no guidance."""
    batch_size: int = 64
    """Trajectories per device and pass."""
    gradient_accumulation_steps: int = 1
    """Passes whose gradients are added up before the weights change."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of the training: no, bf16, or auto: bf16 on a GPU that computes in it and where fit names a card, else
    no."""
    weights: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = "auto"
    """Type of the weights that are not trained, as in record and distill: auto is bfloat16 with mixed_precision bf16,
    else float32."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW with its two moments in float32 (adamw) or in 8 bits (adamw8bit)."""
    ema_device: Literal["auto", "cpu"] = "auto"
    """Where the EMA is kept: auto is beside the weights."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the blocks and the activations of one block, for the time of another forward pass."""
    checkpoint_stride: int = 1
    """With gradient_checkpointing, recompute every n-th block only."""
    sequential: bool = False
    """Run the steps one after the other, which keeps the activations of one step."""
    offload_activations: bool = False
    """Keep activations in the host's memory, those of one block at a time excepted."""
    lora_rank: int = 0
    """Rank of the student's adapters; 0 trains all weights."""
    fit: str | None = None
    """Memory of a card, such as 80GB: the options are searched with which the training fits on it, in least time."""
    num_devices: int = 1
    """Number of devices that weights, gradients, optimiser and EMA are sharded over."""
    num_trajectories: int = 100_000
    """Number of trajectories to record, stored at the knots of this student only."""
    num_prompts: int = 0
    """Number of distinct prompts, for a text-to-image teacher; prompts beyond num_trajectories are not used."""
    dtype: Literal["float32", "float16"] = "float32"
    """Data type of stored states, and of stored prompt embeddings unless the text encoders have 16 bits themselves."""
    max_steps: int = 300_000
    """Number of optimiser steps."""
    text_tokens: int = 256
    """Number of tokens of a prompt's embedding."""
    height: int | None = None
    """Height in latents, not in pixels as for record; the model's default if not given."""
    width: int | None = None
    """Width in latents, not in pixels as for record; the model's default if not given."""
    frames: int = 1
    """Latent frames of a video: 1 and, for each four to eight frames after the first one, one more, as its VAE
    compresses time."""
    device: str | None = None
    """Device to time one evaluation on (auto, cpu, cuda, ...), for an estimate of the hours of recording and training;
    nothing is timed if not given."""

    def __post_init__(self) -> None:
        _check(self, 1, "num_steps", "solver_steps", "batch_size", "num_devices", "num_trajectories", "max_steps")
        _check(self, 1, "gradient_accumulation_steps", "text_tokens", "checkpoint_stride", "frames")
        _check(self, 0, "history_layers", "lora_rank", "num_prompts")
        _check(self, 1, *(name for name in ("height", "width") if getattr(self, name) is not None))


@dataclass(frozen=True)
class JudgeConfig:
    """What samples are judged by."""

    features: str | None = None
    """Feature network: fashion-classifier, emoji-classifier, scenes-detector, inception, or a TorchScript file. If not
    given: inception, except for an embedded teacher judged without a reference, whose own network is used."""
    feature_weights: str | None = None
    """State dict file for inception; downloaded if not given."""
    reference: str | None = None
    """Real images, for FD to the data, KID, precision and recall: a folder of images of one size (subfolders included),
    or an .npz file of ADM's evaluation suite with the images in arr_0. If not given, an embedded teacher's own data
    set; for other teachers these metrics are left out."""
    clip: str | None = None
    """CLIP model (Hub id or folder), such as openai/clip-vit-large-patch14, for the mean CLIP score of samples and
    their prompts."""
    preference: str | None = None
    """CLIP model fitted to human preference (Hub id or folder), such as yuvalkirstain/PickScore_v1, for the mean
    preference score of samples and their prompts."""
