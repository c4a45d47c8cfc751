"""Z-Image (Z-Image Team 2025, arXiv:2511.22699): lists of samples, image tokens padded to a multiple of 32."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import Family


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: lists of samples and of unpadded prompts; time from 0."""
    text, mask = condition["encoder_hidden_states"], condition.get("encoder_attention_mask")
    lengths = [text.shape[1]] * len(text) if mask is None else mask.sum(1).tolist()  # waits unless the mask is on_host
    prompts = [x[:length] for x, length in zip(text, lengths, strict=True)]
    return {"x": list(latents.unsqueeze(2).unbind(0)), "t": 1 - timestep / 1000, "cap_feats": prompts}


def _output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The prediction, stacked; the class predicts image minus noise, the negative of the flow."""
    return -torch.stack(list(result[0])).squeeze(2)


def count_padded(transformer: Any, x: list[Tensor]) -> int:
    """Image tokens of a sample, padded to a multiple of 32."""
    return -(-math.prod(x[0].shape[-2:]) // transformer.config.all_patch_size[0] ** 2 // 32) * 32


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings of each prompt, padded to the longest, and a mask of the tokens that count."""
    rows = encode_prompt(pipeline, prompts)[0]
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(x), dtype=torch.bool, device=x.device) for x in rows], True)
    return {"encoder_hidden_states": nn.utils.rnn.pad_sequence(rows, True), "encoder_attention_mask": mask}


FAMILY = Family(
    block_lists=("layers",),
    attention=("attention",),
    head=("all_final_layer.2-1.linear",),
    text="last",
    image_tokens=count_padded,
    time_embedding="t_embedder",
    guidance_off=("guidance_scale", 0.0),
    keeps_float32=True,
    inputs=_inputs,
    on_host=("encoder_attention_mask",),
    output=_output,
    pipeline="ZImagePipeline",
    encode=_encode,
)
