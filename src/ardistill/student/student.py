"""The student: the teacher's transformer, told of the earlier steps of its own trajectory."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.embeddings import get_timestep_embedding
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ardistill.core.history import MASKS, History, Layout, MixedIn, attach_history, placement
from ardistill.core.schedule import Knots
from ardistill.devices import Device, device_of, resolve_device
from ardistill.families import Condition, Family, family_of, transformer_class
from ardistill.files import checkpoints
from ardistill.files.store import read_json, sealed_json, whole_file, write_whole
from ardistill.student.lora import add_adapters, share_weights
from ardistill.teacher.teacher import Teacher, weight_fingerprint
from ardistill.trajectories import TrajectoryDataset

_LORA = ".lora_"
TARGETS = ("state", "denoised", "anchored")
OUTPUTS = ("solver", "direct")
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""All of them in one file: diffusers would not read those of ours that lie in a shard of their own."""
_FACTS = ("version", "weights", "transformer")
"""What student.json says besides the configuration: checksums of the weights and of the transformer's config.json."""


@dataclass(frozen=True)
class StudentConfig:
    """What a student is, besides its weights."""

    knots: Knots
    """Times of the student's steps."""
    history_layers: int
    """N: lowest layers that see earlier steps; 0 is step distillation."""
    mask: str = "M4"
    """Which earlier steps they see: M1 none, M2 the one before, M3 the noise, M4 all."""
    target: str = "state"
    """``state``: inputs and targets are x_t. ``denoised``: x̂0 (the authors' code). ``anchored``: inputs
    alpha x̂0 + sigma x_T with the exact noise, targets x̂0."""
    output: str = "solver"
    """``solver``: the network predicts what the teacher predicts, and the closed-form solver step follows.
    ``direct``: a head per step emits the target."""
    gated: bool = True
    """What is seen of earlier steps is added through a gate per layer that starts closed: training starts where a
    student without history does. False: one softmax over all steps, as in the paper."""
    teacher: str = ""
    """Name of the teacher, as given to ``Teacher.from_pretrained``."""
    fingerprint: str = ""
    """SHA-256 of the teacher's weights; empty: not known."""
    guidance_range: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest guidance of the trajectories. The same twice: the student absorbs it; else it is told."""
    sample_shapes: tuple[tuple[int, ...], ...] = ()
    """(c, h, w) or (c, f, h, w) of the latents it was distilled on; empty: not known."""
    lora_rank: int = 0
    """Of the adapters it is trained by, beside the teacher's own weights; 0: all weights are trained, as
    those of a saved student are."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mask", self.mask, MASKS),
            ("target", self.target, TARGETS),
            ("output", self.output, OUTPUTS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if self.target == "denoised" and self.output != "direct":
            raise ValueError("target 'denoised' needs output='direct': the solver cannot start from a denoised image")
        for name in ("history_layers", "lora_rank"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"expected {name} as a whole number, got {getattr(self, name)!r}")
        if not 1 <= self.knots.num_steps <= 8:
            raise ValueError(f"expected 1 to 8 steps, got {self.knots.num_steps}")
        if self.lora_rank < 0:
            raise ValueError(f"expected a lora_rank of 1 or more, or 0 to train all weights, got {self.lora_rank}")

    @classmethod
    def for_data(cls, data: TrajectoryDataset, **options: Any) -> StudentConfig:
        """Of a student of recorded trajectories; ``options`` are the fields that do not follow from them."""
        facts = data.manifest
        known: dict[str, Any] = {"knots": data.knots, "teacher": facts.teacher, "fingerprint": facts.fingerprint}
        known |= {"guidance_range": facts.guidance_range, "sample_shapes": facts.sample_shapes}
        return cls(**{**known, **options})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StudentConfig:
        """Undo ``dataclasses.asdict``, also after a passage through JSON."""
        shapes = tuple(tuple(shape) for shape in data["sample_shapes"])
        facts = {"guidance_range": tuple(data["guidance_range"]), "sample_shapes": shapes}
        data = {"gated": False, **data}  # what was written before there were gates
        return cls(**{**data, **facts, "knots": Knots.from_dict(data["knots"])})

    def conditioned_uniformly(self, num_train_timesteps: int) -> StudentConfig:
        """The same, its network told the times of the authors' code."""
        return replace(self, knots=self.knots.conditioned_uniformly(num_train_timesteps))

    @property
    def has_gates(self) -> bool:
        """Whether layers with history have a gate: not if no step sees an earlier one."""
        return self.gated and any(len(MASKS[self.mask](step)) > 1 for step in range(self.knots.num_steps))

    @property
    def is_told_guidance(self) -> bool:
        """Whether the guidance scale is an input, so that a user can still steer; else it is absorbed."""
        return self.guidance_range[0] < self.guidance_range[1]

    @property
    def guidance_scale(self) -> float:
        """What it draws with if nothing is said: the middle of the range."""
        return sum(self.guidance_range) / 2

    def check_guidance(self, scale: float | Tensor | None) -> None:
        """Refuse a guidance scale that the student was not distilled at, whether its network is told of it or not.

        Args:
            scale: One, or one for each row; None is what it was distilled at.

        Raises:
            ValueError: One is outside of ``guidance_range``.
        """
        if scale is None or (isinstance(scale, Tensor) and not self.fingerprint):  # nothing is known of its training
            return
        (low, high), given = self.guidance_range, torch.as_tensor(scale)
        slack = max(1e-4, high * torch.finfo(given.dtype).eps) if given.is_floating_point() else 0.0  # of rounding
        given = given.float()
        if not bool(((given >= low - slack) & (given <= high + slack)).all()):
            known = f"{low:g} to {high:g}" if self.is_told_guidance else f"{low:g} alone"
            wrong = f"{float(given.min()):g}" + (f" to {float(given.max()):g}" if given.numel() > 1 else "")
            raise ValueError(
                f"the student was distilled at guidance {known}, got {wrong}; leave the scale out, or distil another "
                "student at it"
            )

    @functools.cached_property
    def coefficients(self) -> list[tuple[float, float]]:
        """(a, b) of each step: its estimate is a x + b prediction; float64, as alpha may be tiny."""
        return self.knots.coefficients("state" if self.target == "state" else "denoised")

    def estimate(self, prediction: Tensor, inputs: Tensor, steps: Sequence[int]) -> Tensor:
        """Estimates of the target, (b, s, c, h, w), from the network's predictions and inputs at these steps.

        They are float32, whatever the dtype of the weights: the solver step is made here.
        """
        if self.output == "direct":
            return prediction.float()
        a, b = torch.tensor([self.coefficients[s] for s in steps], dtype=torch.float32, device=inputs.device).unbind(1)
        shape = (-1,) + (1,) * (inputs.ndim - 2)
        return a.view(shape) * inputs.float() + b.view(shape) * prediction.float()

    def next_input(self, estimate: Tensor, noise: Tensor, step: int) -> Tensor:
        """What follows an estimate made at ``step``: itself, or re-noised with the exact noise (``anchored``)."""
        if self.target != "anchored":
            return estimate
        return self.knots.alpha[step + 1] * estimate + self.knots.sigma[step + 1] * noise


class _GuidedEmbedding(MixedIn):
    """Mixed into the class of a time embedding: adds what a linear layer makes of the guidance scale.

    The layer starts at zero: an untrained student does not heed it. Source: Meng et al. 2023, arXiv:2210.03142, Sec. 3.
    """

    prefix = "Guided"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        embedded = super().forward(*args, **kwargs)  # type: ignore[misc]
        (low, high), guidance = self.guidance_range, self.history.current().guidance  # type: ignore[attr-defined]
        features = get_timestep_embedding(1000 * (guidance - low) / (high - low), 256)
        return embedded + self.guidance_proj(features.to(embedded))  # type: ignore[attr-defined]


def _tell_guidance(modules: list[Any], history: History, guidance_range: tuple[float, float]) -> None:
    """Let these time embeddings add the guidance of the current call."""
    if not modules:
        raise ValueError("found no embedding of the time to add guidance to; name it in the family's time_embedding")
    for module in modules:
        last = [layer for layer in module.modules() if hasattr(layer, "out_features")][-1]  # linear, or quantised
        module.guidance_proj = nn.Linear(256, last.out_features, bias=False, **placement(last))
        nn.init.zeros_(module.guidance_proj.weight)
        _GuidedEmbedding.mix_into(module)
        module.history, module.guidance_range = history, guidance_range


def _numbers_of(linear: Any, options: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Its weight (out, in) and bias as numbers: of a quantised layer, what it makes of unit vectors and of zero."""
    weight = linear.weight
    if type(weight) is nn.Parameter and type(weight.detach()) is Tensor and weight.is_floating_point():
        return weight.detach(), None if linear.bias is None else linear.bias.detach()
    with torch.no_grad():
        bias = linear(torch.zeros(1, linear.in_features, **options))[0]
        made = linear(torch.eye(linear.in_features, **options)) - bias
    return made.T.contiguous(), None if linear.bias is None else bias


class StepLinear(nn.Linear):
    """A linear layer with one weight per step: step 0 under the usual names, the later steps behind it.

    Each starts as the given layer times one of ``scales``.
    """

    def __init__(self, linear: nn.Linear, scales: Sequence[float], history: History) -> None:
        options = placement(linear)
        weight, bias = _numbers_of(linear, options)
        super().__init__(linear.in_features, linear.out_features, bias=bias is not None, **options)
        scale = torch.tensor(scales, **options)
        weights = scale[:, None, None] * weight
        self.weight.data, self.later_weight = weights[0].clone(), nn.Parameter(weights[1:].clone())  # (s-1, out, in)
        if bias is not None:
            biases = scale[:, None] * bias
            self.bias.data, self.later_bias = biases[0].clone(), nn.Parameter(biases[1:].clone())  # (s-1, out)
        self.num_steps = len(scales)
        self.history = history

    def _step(self, hidden_states: Tensor, step: int) -> Tensor:
        if step == 0:
            return nn.functional.linear(hidden_states, self.weight, self.bias)
        bias = None if self.bias is None else self.later_bias[step - 1]
        return nn.functional.linear(hidden_states, self.later_weight[step - 1], bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(rows, ..., in) -> (rows, ..., out), rows folded or of one step, as the history says."""
        layout = self.history.current()
        if layout.cache is not None:
            return self._step(hidden_states, layout.step)
        folded = hidden_states.unflatten(0, (-1, self.num_steps))
        return torch.stack([self._step(folded[:, s], s) for s in range(self.num_steps)], dim=1).flatten(0, 1)


def _is_first_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _gather(value: Tensor) -> Tensor:
    """A tensor, whole, on every process."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _read_config(path: Path, data: Any) -> StudentConfig:
    """A student's configuration, as it was found in ``path``.

    Raises:
        ValueError: It is none, or a newer version wrote it.
    """
    if isinstance(data, dict) and data.get("version", 1) != 1:
        raise ValueError(f"{path} was written by a newer ardistill; update the package")
    try:
        return StudentConfig.from_dict({key: x for key, x in data.items() if key not in _FACTS})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe a student ({type(error).__name__}: {error}); write it again, from its run"
        ) from error


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors.

    Raises:
        ValueError: It is missing, cut or no such file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing, cut or damaged ({error}); write it again, from its run") from error


def _check_tensors(tensors: dict[str, Tensor], described: dict[str, Any], path: Path) -> None:
    """See that they are those that ``student.json`` was written for. That of an export, whose weights others may
    convert, and of older versions says nothing of them.

    Raises:
        ValueError: They are not, to the last bit.
    """
    expected = described.get("weights")
    if expected is not None and expected != weight_fingerprint(tensors):
        raise _differs(path)


def _differs(path: Path) -> ValueError:
    return ValueError(f"{path} is not what student.json says (its checksum differs); write both again, from the run")


class Attachment:
    """What a student adds to its transformer besides modules; a hook before its forward.

    The hook tells the layout of the current call what follows from the arguments of this forward. It stands outside of
    ``forward``, so that it works below compilation and beside hooks that replace ``forward``, as offloading does.
    """

    def __init__(self, transformer: nn.Module, config: StudentConfig, family: Family, history: History) -> None:
        self.config, self.family, self.history = config, family, history
        self.is_complete = True
        """Whether the own weights have their values."""
        self.own_weights: list[str] = []
        """Names of the weights that the stock transformer lacks: heads of later steps, gates, guidance."""
        self.names = [*inspect.signature(type(transformer).forward).parameters][1:]

    def __call__(self, transformer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        layout = self.history.current()
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        first = arguments.get(self.names[0], next(iter(arguments.values())))
        layout.image_tokens, layout.image_start = self.family.place_image(
            transformer, {self.names[0]: first} | arguments
        )
        if isinstance(layout.guidance, float):
            layout.guidance = torch.full((len(first),), layout.guidance, dtype=torch.float32, device=first[0].device)


class Student(nn.Module):
    """A transformer that takes ``num_steps`` steps from noise to image and remembers them.

    Args:
        transformer: Of a known family; changed in place (its attention modules are told of the history).
        config: Knots, history, target and output.

    Raises:
        ValueError: ``history_layers`` is not within the depth of the transformer.
    """

    def __init__(self, transformer: Any, config: StudentConfig) -> None:
        super().__init__()
        family = family_of(transformer)
        blocks = family.blocks(transformer)
        if not 0 <= config.history_layers <= len(blocks):
            raise ValueError(f"expected 0 to {len(blocks)} history layers (the depth), got {config.history_layers}")
        self.config = config
        self.family = family
        self.transformer = transformer
        self.class_name = type(transformer).__name__
        """Of the transformer in diffusers: dividing it over processes changes its class."""
        stock = {id(parameter): parameter for parameter in transformer.parameters()}  # kept, or ids would be used again
        lower = [module for block in blocks[: config.history_layers] for module in block]
        self.history = attach_history(lower, config.mask, family.text, config.has_gates)
        for module in lower:  # the default is the process's, and another model's set_attention_backend changes it
            processor: Any = getattr(module, "processor", None)
            if hasattr(processor, "_attention_backend") and processor._attention_backend is None:
                processor._attention_backend = AttentionBackendName.NATIVE
        self.coefficients = config.coefficients
        if config.output == "direct":  # no a x: start from what b makes of the prediction, where b is not huge
            scales = [max(-1.0, min(1.0, b)) for _, b in config.coefficients]
            for name in family.head:  # the last one emits; those before it shift and scale
                own = scales if name == family.head[-1] else [1.0] * len(scales)
                transformer.set_submodule(name, StepLinear(transformer.get_submodule(name), own, self.history))
        if config.is_told_guidance and not family.embeds_guidance(transformer):
            found = [x for name, x in transformer.named_modules() if name.endswith(family.time_embedding)]
            _tell_guidance(found, self.history, config.guidance_range)
        attachment = Attachment(transformer, config, family, self.history)
        attachment.own_weights = [name for name, p in transformer.named_parameters() if id(p) not in stock]
        transformer.register_forward_pre_hook(attachment, with_kwargs=True)
        transformer.attachment = attachment
        self.has_own_weights = bool(attachment.own_weights)
        """Whether there are more than the stock transformer's: heads of later steps, gates, guidance."""
        for module in transformer.modules():  # a label dropped in one step of a trajectory and kept in another is noise
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0

    @classmethod
    def from_teacher(cls, teacher: Teacher, config: StudentConfig) -> Student:
        """Start from a copy of the teacher's weights or, with adapters, on these weights themselves."""
        if not config.lora_rank:
            return cls(copy.deepcopy(teacher.transformer).requires_grad_(True), config)
        student = cls(share_weights(teacher.transformer), config)
        base, lists = teacher.transformer.parameters(), student.family.block_lists
        add_adapters(student.transformer, base, lists, config.lora_rank)
        return student

    @property
    def num_steps(self) -> int:
        return self.config.knots.num_steps

    @property
    def device(self) -> torch.device:
        """Where the transformer is, and where its work is done."""
        return device_of(self.transformer)

    @property
    def described(self) -> dict[str, Any]:
        """The transformer's configuration, as diffusers' ``config.json`` has it."""
        return json.loads(self.transformer.to_json_string()) | {"_class_name": self.class_name}

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks in backward, under the same history."""
        self.transformer.enable_gradient_checkpointing(self.history.checkpoint)

    def forward(
        self,
        inputs: Tensor,
        condition: Condition,
        sequential: bool = False,
        detach_history: bool = False,
        on_policy: bool = False,
        through_steps: int = 0,
    ) -> Tensor:
        """All steps: teacher-forced, in one folded pass, or on the student's own inputs, one after the other.

        Args:
            inputs: Input of each step, noisiest first, (b, s, c, h, w) or, for video, (b, s, c, f, h, w).
            condition: One row per sample.
            sequential: Run the steps one after the other, each recomputed in backward: activations of one step
                instead of all, for a third more compute; the same estimates and gradients.
            detach_history: Then, let no gradient flow into the keys and values of earlier steps.
            on_policy: From the first step's input on, go by the student's own estimates instead of ``inputs``. As
                many evaluations as the folded pass: the rollout is the training pass.
            through_steps: Then, let gradients flow through the inputs of so many last steps.

        Returns:
            Each step's estimate of its target, (b, s, c, h, w).

        Raises:
            ValueError: The second axis is not ``num_steps``.
        """
        if inputs.ndim < 5 or inputs.shape[1] != self.num_steps:
            raise ValueError(f"expected inputs (b, {self.num_steps}, c, h, w), got {tuple(inputs.shape)}")
        if sequential or on_policy:
            return self._step_by_step(inputs, condition, sequential, detach_history, on_policy, through_steps)
        batch, steps = inputs.shape[:2]
        times = torch.tensor(self.config.knots.timesteps, dtype=torch.float32, device=inputs.device).repeat(batch)
        repeated = {name: value.repeat_interleave(steps, dim=0) for name, value in condition.items()}
        prediction = self._predict(inputs.flatten(0, 1), times, repeated, Layout(steps))
        return self._estimate(prediction.unflatten(0, (batch, steps)), inputs, range(steps))

    def _step_by_step(
        self,
        inputs: Tensor,
        condition: Condition,
        recompute: bool,
        detach_history: bool,
        on_policy: bool,
        through_steps: int,
    ) -> Tensor:
        history: list[list[Tensor]] = []  # of each step so far: key and value of every layer with history, in turn
        estimates: list[Tensor] = []
        for step in range(self.num_steps):

            def run(x: Tensor, *past: Tensor, step: int = step) -> tuple[Tensor, ...]:
                pairs = [past[i : i + 2] for i in range(0, len(past), 2)]
                layers = len(pairs) // step if step else 0
                cache: dict = {layer: pairs[layer::layers] for layer in range(layers)}
                estimate = self.step(x, step, condition, cache)
                return estimate, *(tensor for layer in sorted(cache) for tensor in cache[layer][-1])

            x = inputs[:, step]
            if on_policy and step:
                last = estimates[-1] if step >= self.num_steps - through_steps else estimates[-1].detach()
                x = self.next_input(last, inputs[:, 0], step - 1)
            past = [tensor for own in history for tensor in own]
            estimate, *own = checkpoint(run, x, *past, use_reentrant=False) if recompute else run(x, *past)
            estimates.append(estimate)
            history.append([tensor.detach() for tensor in own] if detach_history else own)
        return torch.stack(estimates, dim=1)

    def step(self, inputs: Tensor, step: int, condition: Condition, cache: dict) -> Tensor:
        """One step of one block of tokens, earlier steps from the cache.

        Args:
            inputs: Input of this step, (b, c, h, w).
            step: 0..num_steps - 1; all before it must have filled the cache.
            condition: One row per sample.
            cache: An empty dict at step 0; filled here.

        Returns:
            The step's estimate of its target, (b, c, h, w).
        """
        times = torch.full((len(inputs),), self.config.knots.timesteps[step], dtype=torch.float32, device=inputs.device)
        prediction = self._predict(inputs, times, condition, Layout(step=step, cache=cache))
        return self._estimate(prediction[:, None], inputs[:, None], [step])[:, 0]

    def _predict(self, latents: Tensor, times: Tensor, condition: Condition, layout: Layout) -> Tensor:
        """The network's prediction, of as many channels as the latents: a learned sigma is cut off."""
        default = self.config.guidance_scale
        condition, guidance = self.family.take_guidance(self.transformer, latents, condition, default)
        latents, condition = self.family.cast(self.transformer, latents, condition)
        arguments = self.family.inputs(self.transformer, latents, times, condition)
        with self.history.laid_out(replace(layout, guidance=guidance)):
            result = self.transformer(**arguments, **self.family.options)
        return self.family.output(self.transformer, result, latents)[:, : latents.shape[1]]

    def next_input(self, estimate: Tensor, noise: Tensor, step: int) -> Tensor:
        """What follows an estimate made at ``step``: itself, or re-noised with the exact noise (``anchored``)."""
        return self.config.next_input(estimate, noise, step)

    def _estimate(self, prediction: Tensor, inputs: Tensor, steps: Sequence[int]) -> Tensor:
        return self.config.estimate(prediction, inputs, steps)

    def save_transformer(self, folder: Path) -> dict[str, Tensor] | None:
        """Write the transformer alone, whole, in one file: adapters merged into the weights they stand beside, weights
        divided over processes gathered one by one.

        Returns:
            What this process wrote; None if another did: of several, the first one does.
        """
        writes, weights, state = _is_first_process(), self.transformer.state_dict(), {}
        for name in [name for name in weights if _LORA not in name]:
            value = _gather(weights[name])
            if name.endswith(".base_layer.weight"):
                a, b = (_gather(weights[name.replace("base_layer", f"lora_{part}.default")]) for part in "AB")
                value = value + b @ a
            if writes:
                state[name.replace(".base_layer", "")] = value.cpu().contiguous()
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "config.json", json.dumps(self.described, indent=2).encode())
            _save_tensors(state, folder / WEIGHTS)
        return state if writes else None

    def save_adapters(self, folder: str | Path) -> None:
        """Write what was trained beside the teacher's weights: ``pytorch_lora_weights.safetensors``, which diffusers'
        ``load_lora_weights`` reads, the gates and heads that it knows nothing of, and ``student.json``.

        Where the weights are divided over processes, each has to call it; the first one writes.
        """
        folder = Path(folder)
        own = {name for name, p in self.transformer.named_parameters() if p.requires_grad}
        weights = {name: _gather(x).cpu() for name, x in self.transformer.state_dict().items() if name in own}
        if _is_first_process():
            folder.mkdir(parents=True, exist_ok=True)
            adapters = {
                f"transformer.{name.replace('.default', '')}": x for name, x in weights.items() if _LORA in name
            }
            more = {name: x for name, x in weights.items() if _LORA not in name}
            _save_tensors(adapters, folder / "pytorch_lora_weights.safetensors")
            _save_tensors(more, folder / "more.safetensors")
            facts = {"version": 1, "weights": weight_fingerprint(adapters | more)}
            write_whole(folder / "student.json", sealed_json(facts | asdict(self.config)))

    @classmethod
    def from_adapters(cls, teacher: Teacher, folder: str | Path) -> Student:
        """Read what ``save_adapters`` wrote, on the teacher's weights, which are shared, and on the teacher's device.

        Raises:
            ValueError: They are not there, or of another teacher.
        """
        folder = Path(folder)
        if not (folder / "student.json").is_file():
            raise ValueError(f"expected a student's adapters in {folder}, found none; distil with lora_rank")
        data = read_json(folder / "student.json")
        config = _read_config(folder / "student.json", data)
        if config.fingerprint and config.fingerprint != teacher.fingerprint():
            raise ValueError(
                f"{folder} holds adapters for {config.teacher} ({config.fingerprint[:12]}), not for "
                f"{teacher.name or 'this teacher'} ({teacher.fingerprint()[:12]})"
            )
        student = cls.from_teacher(teacher, config)
        saved, more = (_load_tensors(folder / f"{x}.safetensors") for x in ("pytorch_lora_weights", "more"))
        _check_tensors(saved | more, data, folder)
        weights = {x.removeprefix("transformer.").replace(".weight", ".default.weight"): y for x, y in saved.items()}
        weights |= more
        own = {name: p for name, p in student.transformer.named_parameters() if p.requires_grad}
        if own.keys() != weights.keys():
            raise ValueError(f"{folder} does not fit: {', '.join(sorted(own.keys() ^ weights.keys())[:3])} ...")
        student.transformer.load_state_dict(weights, strict=False)
        return student.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``transformer/`` (a diffusers folder, safetensors) and ``student.json``.

        Where the weights are divided over processes, each has to call it; the first one writes.
        """
        folder = Path(folder)
        written = self.save_transformer(folder / "transformer")
        if written is not None:
            digest = hashlib.sha256((folder / "transformer" / "config.json").read_bytes()).hexdigest()
            facts = {"version": 1, "weights": weight_fingerprint(written), "transformer": digest}
            write_whole(folder / "student.json", sealed_json(facts | asdict(replace(self.config, lora_rank=0))))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: Device = None) -> Student:
        """Read a run's folder, one of its checkpoints (EMA), what ``save_pretrained`` or what ``export`` wrote, history
        and heads included.

        Args:
            folder: Any of these.
            device: Where the student is put; the best device there is if not given.

        Raises:
            ValueError: There is no student there, it was written by a newer version, or there is no such device.
        """
        folder, where = Path(folder), resolve_device(device)
        if (folder / "state.json").is_file():
            return cls._from_checkpoint(folder).to(where)
        if (folder / "student" / "student.json").is_file():
            folder = folder / "student"
        path, data = folder / "student.json", None
        if path.is_file():
            data = read_json(path)
        elif (folder / "model_index.json").is_file():
            path = folder / "model_index.json"
            found = read_json(path)
            data = found.get("student") if isinstance(found, dict) else None
        if data is None:
            raise ValueError(f"expected a student (a run, a checkpoint of one, or an export) in {folder}, found none")
        config = _read_config(path, data)
        path = folder / "transformer" / "config.json"
        described = read_json(path)
        if data.get("transformer") not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
            raise _differs(path)
        student = cls(_make_transformer(described, path), config)
        weights = _load_tensors(folder / "transformer" / WEIGHTS)
        _check_tensors(weights, data, folder / "transformer" / WEIGHTS)
        try:
            student.transformer.load_state_dict(weights)
        except RuntimeError as error:  # torch's, a line for each tensor
            reason = "; ".join(str(error).split("\n\t")[1:3]) or str(error)
            raise ValueError(f"{path} does not fit the weights beside it ({reason}); write both again") from error
        return student.eval().to(where)

    @classmethod
    def _from_checkpoint(cls, folder: Path) -> Student:
        checkpoints.check(folder)
        path = folder / "state.json"
        saved = read_json(path)
        if "made_of" not in saved:
            raise ValueError(f"{folder} is of an older ardistill, which resumes it; only its run can read it")
        config = _read_config(path, saved["made_of"]["student"])
        if config.lora_rank:
            raise ValueError(
                f"{folder} holds adapters without the weights they stand beside; repeat its run's command to its end, "
                "which writes both"
            )
        student = cls(_make_transformer(saved["made_of"]["transformer"], path), config)
        averaged = dict(student.named_parameters())
        buffers = {name: x for name, x in student.state_dict().items() if name not in averaged}
        checkpoints.load(folder, {"ema": {"shadow_params": averaged}, "student": buffers}, collectively=False)
        return student.eval()


def _make_transformer(described: Any, path: Path) -> nn.Module:
    """Of a configuration that was found in ``path``; its weights are random, in float32 whatever torch's default."""
    if not isinstance(described, dict) or "_class_name" not in described:
        raise ValueError(f"{path}: expected a diffusers model's configuration; write it again, from its run")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return transformer_class(described).from_config(described)
    finally:
        torch.set_default_dtype(default)
