"""FLUX.2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import TEMPLATE, byte_tokenizer

INSTANCES = {
    "flux2": Tiny(
        "Flux2Transformer2DModel",
        {"in_channels": 8, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "timestep_guidance_channels": 16,
         "axes_dims_rope": (4, 4, 4, 4)},
        (8, 4, 4),
        text(5, 12, guidance=lambda count: torch.full((count,), 3.5)),
        ({0, 1}, slice(-16, None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    """Klein: its text encoder is the smaller one."""
    config = transformers.Qwen3Config(
        vocab_size=300, hidden_size=4, intermediate_size=8, num_hidden_layers=28, num_attention_heads=1,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    torch.nn.init.uniform_(autoencoder.bn.running_var, 0.5, 2.0)
    tiny = INSTANCES["flux2"]
    return diffusers.Flux2KleinPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        autoencoder,
        transformers.Qwen3ForCausalLM(config),
        byte_tokenizer(chat_template=TEMPLATE),
        replace(tiny, options=tiny.options | {"guidance_embeds": False}).transformer(),
    )


PIPELINE = TinyPipeline(_make, "flux2", call={"height": 16, "width": 16})
