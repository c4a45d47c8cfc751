"""The few-step model: every step of a trajectory in one folded pass, or one after the other with a cache."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ardistill.core.attach import attach, compile_blocks
from ardistill.core.config import EXPERTS, StudentConfig
from ardistill.core.history import Layout
from ardistill.devices import device_of
from ardistill.families import Condition, family_of
from ardistill.student.folded import earlier_rows, earlier_sums, history_attention
from ardistill.student.recompute import recompute_blocks


class FewStepModel(nn.Module):
    """A transformer that takes ``num_steps`` steps from noise to image and attends to the earlier ones.

    Args:
        transformer: A transformer of a known family; extended in place by a history, and by heads where the output is
            ``direct``.
        config: Knots, history, target and output.

    Raises:
        ValueError: The family is not known, or ``history_layers`` exceeds the depth of the transformer.
    """

    def __init__(self, transformer: Any, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.family = family_of(transformer)
        self.transformer = transformer
        self.class_name = type(transformer).__name__
        """Name of the transformer's class in diffusers; dividing it over processes changes the class."""
        attachment = attach(transformer, config)
        self.history = attachment.history
        self.has_own_weights = bool(attachment.own_weights)
        """Whether there are weights that the stock transformer lacks: heads of later steps, gates, guidance."""

    @property
    def num_steps(self) -> int:
        """Steps from noise to image, S."""
        return self.config.knots.num_steps

    @property
    def parts(self) -> dict[str, FewStepModel]:
        """Component of a pipeline -> the student that it is: the student itself, or two for a teacher of two."""
        return {EXPERTS[""]: self}

    @property
    def device(self) -> torch.device:
        """Where the transformer is, and where its work is done."""
        return device_of(self.transformer)

    @property
    def described(self) -> dict[str, Any]:
        """The transformer's configuration, as diffusers' ``config.json`` has it, without the path of the teacher."""
        found = json.loads(self.transformer.to_json_string()) | {"_class_name": self.class_name}
        return {name: value for name, value in found.items() if name != "_name_or_path"}

    def enable_gradient_checkpointing(self, stride: int = 1) -> None:
        """Recompute every ``stride``-th block in the backward pass, under the history that it ran with."""
        recompute_blocks(self.transformer, self.family.block_lists, self.history, stride)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile each block of the transformer in place (`ardistill.core.attach.compile_blocks`)."""
        compile_blocks(self.transformer, *args, **options)

    def forward(
        self,
        inputs: Tensor,
        condition: Condition,
        sequential: bool = False,
        detach_history: bool = False,
        on_policy: bool = False,
        through_steps: int = 0,
    ) -> Tensor:
        """All steps: teacher-forced in one folded pass, or one after the other on the student's own estimates.

        Args:
            inputs: Input of each step, noisiest first, (b, s, c, h, w) or, for video, (b, s, c, f, h, w).
            condition: One row per sample.
            sequential: Run the steps one after the other, each recomputed in the backward pass: the activations of one
                step instead of all, for a third more compute; the same estimates and gradients.
            detach_history: With ``sequential``: let no gradient flow into the keys and values of earlier steps.
            on_policy: From the second step on, take the student's own estimates instead of ``inputs``. This takes as
                many evaluations as the folded pass: the rollout is the training pass.
            through_steps: With ``on_policy``: let gradients flow through the inputs of this many last steps.

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
        times = torch.stack([self._times(inputs, step) for step in range(steps)], dim=1).flatten()
        linear, by_row = self.family.linear[0], self.family.by_row[0]
        attention: Any = earlier_sums if linear else earlier_rows if by_row else history_attention
        layout = Layout(folded=functools.partial(attention, num_steps=steps))
        repeated = {name: value.repeat_interleave(steps, dim=0) for name, value in condition.items()}
        prediction = self._predict(inputs.flatten(0, 1), times, repeated, layout)
        pairs = zip(prediction.unflatten(0, (batch, steps)).unbind(1), inputs.unbind(1), strict=True)
        return torch.stack([self.config.estimate(*pair, step) for step, pair in enumerate(pairs)], dim=1)

    def _step_by_step(
        self,
        inputs: Tensor,
        condition: Condition,
        recompute: bool,
        detach_history: bool,
        on_policy: bool,
        through_steps: int,
    ) -> Tensor:
        """Run the steps one after the other; `forward` documents the arguments.

        The cache of earlier steps is flattened for ``checkpoint``, which takes tensors only: step by step, and within
        a step layer by layer, the key and the value, each (b, h, t, d).
        """
        history: list[list[Tensor]] = []  # one list for each step so far: key, value, key, value, ... by layer
        estimates: list[Tensor] = []
        for step in range(self.num_steps):

            def run(x: Tensor, *past: Tensor, step: int = step) -> tuple[Tensor, ...]:
                pairs = [past[i : i + 2] for i in range(0, len(past), 2)]  # pair [e * layers + l]: step e, layer l
                layers = len(pairs) // step if step else 0
                cache: dict = {layer: pairs[layer::layers] for layer in range(layers)}  # layer -> its pair of each step
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
        """One step of each sample; the earlier steps are in the cache.

        Args:
            inputs: Input of this step, (b, c, h, w).
            step: 0..num_steps - 1; all steps before it must have filled the cache.
            condition: One row per sample.
            cache: An empty dict at step 0; each step adds its keys and values.

        Returns:
            The step's estimate of its target, (b, c, h, w).
        """
        prediction = self._predict(inputs, self._times(inputs, step), condition, Layout(step=step, cache=cache))
        return self.config.estimate(prediction, inputs, step)

    def _times(self, inputs: Tensor, step: int) -> Tensor:
        """The step's timestep for each row of inputs, (b,), filled in on the device: nothing is copied there."""
        return torch.full((len(inputs),), self.config.knots.timesteps[step], dtype=torch.float32, device=inputs.device)

    def _predict(self, latents: Tensor, times: Tensor, condition: Condition, layout: Layout) -> Tensor:
        """The network's prediction, with as many channels as the latents: a learned sigma is cut off."""
        default = self.config.guidance_scale
        condition, guidance = self.family.take_guidance(self.transformer, latents, condition, default)
        latents, condition = self.family.cast(self.transformer, latents, condition)
        arguments = self.family.inputs(self.transformer, latents, times, condition)
        with self.history.use_layout(replace(layout, guidance=guidance)):
            result = self.transformer(**arguments, **self.family.options)
        return self.family.output(self.transformer, result, latents)[:, : latents.shape[1]]

    def next_input(self, estimate: Tensor, noise: Tensor, step: int) -> Tensor:
        """The input that follows an estimate made at ``step``; `StudentConfig.next_input` defines it."""
        return self.config.next_input(estimate, noise, step)
