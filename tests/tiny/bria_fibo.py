"""Bria FIBO: text first, a layer of the text encoder for each block, a mask of keys; its VAE has a factor of 16."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, ragged
from tiny.parts import byte_tokenizer

_OPTIONS = {
    "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 16, "axes_dims_rope": [4, 6, 6], "text_encoder_dim": 8,
}  # fmt: skip


def _condition(layers: int, mask: Any) -> Any:
    return lambda count: {
        "encoder_hidden_states": normal(count, 5, 8 * layers)[..., -16:].roll(8, -1),  # the last layer, the one before
        "text_encoder_layers": normal(count, 5, 8 * layers),
        "encoder_attention_mask": mask(count, 5),
    }


INSTANCES = {
    "bria-fibo": Tiny(
        "BriaFiboTransformer2DModel",
        _OPTIONS,
        (4, 4, 4),
        _condition(3, lambda *shape: torch.ones(*shape, dtype=torch.bool)),  # too few for 4 blocks
        oracle=({0, 1}, slice(-16, None), 16),
    ),
    "bria-fibo-masked": Tiny(
        "BriaFiboTransformer2DModel", _OPTIONS, (4, 4, 4), _condition(6, ragged), oracle=({0, 1}, slice(-16, None), 16)
    ),
}


def _make() -> Any:
    config = transformers.SmolLM3Config(
        vocab_size=128_001, hidden_size=8, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, False, False], is_residual=True, patch_size=2, in_channels=12, out_channels=12,
        scale_factor_spatial=16, scale_factor_temporal=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4,
    )  # fmt: skip
    return diffusers.BriaFiboPipeline(
        INSTANCES["bria-fibo"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        autoencoder,
        transformers.SmolLM3ForCausalLM(config),
        byte_tokenizer(),
    )


PIPELINE = TinyPipeline(_make, "bria-fibo", call={"height": 64, "width": 64})
