"""Prompts to conditions through the pipelines of diffusers, as several families do it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

Condition = dict[str, Tensor]
"""What the transformer is conditioned on besides the time, one row per sample: for DiT ``class_labels`` (b,), for text
``encoder_hidden_states`` (b, t, d) and what else the family needs. ``guidance`` (b,) may stand among them: the scale
of each row, for the teacher's solver and for students that take it as an input."""
SEQUENCE_LENGTH = "_max_sequence_length"
"""Key in a loaded pipeline's config of its folder's ``max_sequence_length``; diffusers takes public keys for parts."""


def encode_prompt(pipeline: Any, *prompts: Any, **options: Any) -> Any:
    """The pipeline's ``encode_prompt``, with the sequence length of its folder, else the default of its call."""
    default = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    if default is not None:
        options["max_sequence_length"] = pipeline.config.get(SEQUENCE_LENGTH, default.default)
    if "do_classifier_free_guidance" in inspect.signature(pipeline.encode_prompt).parameters:
        options["do_classifier_free_guidance"] = False
    return pipeline.encode_prompt(*prompts, **options)


def encode_plain(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings of a fixed length, without a mask."""
    return {"encoder_hidden_states": encode_prompt(pipeline, prompts)[0]}


def encode_masked(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings with a mask of the tokens that count."""
    embeddings, mask = encode_prompt(pipeline, prompts)[:2]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


def encode_unless_empty(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings of a fixed length, zeros for an empty prompt: what some pipelines take where there is no negative."""
    found = encode_plain(pipeline, prompts)["encoder_hidden_states"]
    is_empty = torch.tensor([not prompt for prompt in prompts], device=found.device)
    return {"encoder_hidden_states": found.masked_fill(is_empty[:, None, None], 0)}
