"""Layers that a student has and its teacher lacks: an output layer per step, and an embedding of the guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ardistill.core.history import History
from ardistill.core.mixing import MixedIn, placement


class _GuidedEmbedding(MixedIn):
    """Mixed into the class of a time embedding: adds a linear function of the embedded guidance scale.

    Its weight starts at zero, so that an untrained student ignores the scale. Source: Meng et al. 2023,
    arXiv:2210.03142, Sec. 3.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        embedded = super().forward(*args, **kwargs)  # type: ignore[misc]
        (low, high), guidance = self.guidance_range, self.history.current().guidance  # type: ignore[attr-defined]
        features = get_timestep_embedding(1000 * (guidance - low) / (high - low), 256)
        kind = getattr(self.guidance_proj.weight, "dtype", embedded.dtype)  # type: ignore[attr-defined]
        added = self.guidance_proj(features.to(kind)).to(embedded)  # type: ignore[attr-defined]
        return embedded + (added if embedded.ndim == 2 else added[:, None])  # Chroma embeds one for each modulation


def embed_guidance(modules: list[Any], history: History, guidance_range: tuple[float, float]) -> None:
    """Let these time embeddings add the guidance scale of the current call.

    Raises:
        ValueError: There is no module.
    """
    if not modules:
        raise ValueError("found no embedding of the time to add guidance to; name it in the family's time_embedding")
    for module in modules:
        last = [layer for layer in module.modules() if hasattr(layer, "out_features")][-1]  # linear, or quantised
        module.guidance_proj = nn.Linear(256, last.out_features, bias=False, **placement(last))
        nn.init.zeros_(module.guidance_proj.weight)
        _GuidedEmbedding.mix_into(module)
        module.history, module.guidance_range = history, guidance_range


def _weight_and_bias(linear: Any, options: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias of a layer; of a quantised layer they are computed from unit vectors and from zero."""
    weight = linear.weight
    if type(weight) is nn.Parameter and type(weight.detach()) is Tensor and weight.is_floating_point():
        return weight.detach(), None if linear.bias is None else linear.bias.detach()
    with torch.no_grad():
        bias = linear(torch.zeros(1, linear.in_features, **options))[0]
        made = linear(torch.eye(linear.in_features, **options)) - bias
    return made.T.contiguous(), None if linear.bias is None else bias


class StepLinear(nn.Linear):
    """A linear layer with one weight per step: step 0 has the usual names, the later steps are stacked beside it.

    The weight of each step starts as that of the given layer times one of ``scales``.
    """

    def __init__(self, linear: nn.Linear, scales: Sequence[float], history: History) -> None:
        options = placement(linear)
        weight, bias = _weight_and_bias(linear, options)
        super().__init__(linear.in_features, linear.out_features, bias=bias is not None, **options)
        scale = torch.tensor(scales, **options)
        weights = scale[:, None, None] * weight
        self.weight.data, self.later_weight = weights[0].clone(), nn.Parameter(weights[1:].clone())  # (s-1, out, in)
        if bias is not None:
            biases = scale[:, None] * bias
            self.bias.data, self.later_bias = biases[0].clone(), nn.Parameter(biases[1:].clone())  # (s-1, out)
        self.num_steps, self.history = len(scales), history

    def _step(self, hidden_states: Tensor, step: int) -> Tensor:
        weight = self.later_weight[step - 1] if step else self.weight  # float32 if trained on a base of 16 bits
        bias = self.later_bias[step - 1] if step and self.bias is not None else self.bias
        return nn.functional.linear(hidden_states.to(weight.dtype), weight, bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(rows, ..., in) -> (rows, ..., out), rows folded or of one step, as the layout of the call says."""
        if (layout := self.history.current()).cache is not None:
            return self._step(hidden_states, layout.step)
        folded = hidden_states.unflatten(0, (-1, self.num_steps))
        return torch.stack([self._step(folded[:, s], s) for s in range(self.num_steps)], dim=1).flatten(0, 1)
