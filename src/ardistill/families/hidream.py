"""HiDream-I1 (Cai et al. 2025, arXiv:2505.22705): image before the text, to which every block adds a layer of Llama."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import Family
from ardistill.families.grids import linear_mu, scheduler_grid


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: Llama's embeddings with its layers first, (layers, b, t, d)."""
    return {
        "hidden_states": latents,
        "timesteps": timestep,
        "encoder_hidden_states_t5": condition["encoder_hidden_states"],
        "encoder_hidden_states_llama3": condition["llama_hidden_states"].transpose(0, 1),
        "pooled_embeds": condition["pooled_projections"],
    }


def _output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The prediction, the negative of the result; in training, the class gives patches, (b, c, tokens, size²)."""
    found, config = result[0], transformer.config
    if not transformer.training or config.force_inference_output:
        return -found
    size = config.patch_size
    rows, columns = (n // size for n in latents.shape[-2:])
    patches = found[:, :, : rows * columns].unflatten(3, (size, size)).unflatten(2, (rows, columns))
    return -patches.transpose(3, 4).reshape(latents.shape)


def count_padded_to_square(transformer: Any, hidden_states: Tensor) -> int:
    """Image tokens of a sample; the class pads those of an image that is not square to its largest number."""
    height, width = hidden_states.shape[-2:]
    return math.prod((height, width)) // transformer.config.patch_size**2 if height == width else transformer.max_seq


def _mu(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """That of the largest image, 64 by 64 tokens, whatever the size and the scheduler's shifts, as in its pipeline."""
    return linear_mu({}, 4096)


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings of T5 and of every layer of Llama, (b, layers, t, d), and the pooled ones of two CLIPs."""
    t5, _, llama, _, pooled, _ = encode_prompt(pipeline, prompts)
    return {"encoder_hidden_states": t5, "llama_hidden_states": llama.transpose(0, 1), "pooled_projections": pooled}


def _example_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """Placeholders for Llama's layers and for the pooled embeddings."""
    layers = max(config.llama_layers) + 1
    return {
        "llama_hidden_states": torch.zeros(count, layers, text_tokens, config.caption_channels[1]),
        "pooled_projections": torch.zeros(count, config.text_emb_dim),
    }


FAMILY = Family(
    block_lists=("double_stream_blocks", "single_stream_blocks"),
    attention=("block.attn1",),
    head=("final_layer.adaLN_modulation.1", "final_layer.linear"),
    text="last",
    image_tokens=count_padded_to_square,
    inputs=_inputs,
    output=_output,
    pipeline="HiDreamImagePipeline",
    encode=_encode,
    example_extras=_example_extras,
    mu=_mu,
    grid=scheduler_grid,
)
