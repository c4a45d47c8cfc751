"""Lumina-Image 2.0 (Qin et al. 2025, arXiv:2503.21758): one sequence, the prompt's own length before the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ardistill.families.encoding import Condition, encode_masked
from ardistill.families.family import Family, mask_condition
from ardistill.families.grids import linear_mu


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: time runs from 0 (noise) to 1 (image)."""
    return {"hidden_states": latents, "timestep": 1 - timestep / 1000, **condition}


def take_negative(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The prediction; the class predicts image minus noise, the negative of the flow."""
    return -result[0]


def start_after_prompt(arguments: dict[str, Any]) -> Tensor:
    """Index of each row's first image token: the length of its prompt."""
    return arguments["encoder_attention_mask"].sum(1)


def _mu(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Its pipeline takes the channels for the tokens, and its checkpoints are used so."""
    return linear_mu(config, sample_shape[0])


def _encode_negative(pipeline: Any, prompts: list[str]) -> Condition:
    """Without the system prompt, as its pipeline does."""
    found = pipeline.encode_prompt(prompts, do_classifier_free_guidance=True, negative_prompt=prompts)
    return {"encoder_hidden_states": found[2], "encoder_attention_mask": found[3]}


def _keep_norms(guided: Tensor, conditional: Tensor) -> Tensor:
    """Guidance keeps the norm of each row of latents, as in Lumina's pipeline."""
    return guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


FAMILY = Family(
    block_lists=("layers",),
    attention=("attn",),
    head=("norm_out.linear_1", "norm_out.linear_2"),
    text="first",
    image_start=start_after_prompt,
    inputs=_inputs,
    output=take_negative,
    mu=_mu,
    pipeline="Lumina2Pipeline",
    encode=encode_masked,
    example_extras=mask_condition,
    encode_negative=_encode_negative,
    rescale_guided=_keep_norms,
)
