"""Krea 2: text first, of several layers of the text encoder; its guidance scale 1 is our 2."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import byte_tokenizer

INSTANCES = {
    "krea2": Tiny(
        "Krea2Transformer2DModel",
        {"in_channels": 16, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 32, "timestep_embed_dim": 16, "text_hidden_dim": 16,
         "num_text_layers": 2, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
         "text_intermediate_size": 16, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
         "axes_dims_rope": (4, 6, 6)},
        (4, 8, 8),
        text(7, 32, encoder_attention_mask=ragged),
        ({2, 3}, slice(-16, None), 16),  # after the attention that fuses text
    ),
}  # fmt: skip


def _make() -> Any:
    words = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
              "deepstack_visual_indexes": [0]}  # fmt: skip
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1] * 4, latents_std=[1.5] * 4,
    )  # fmt: skip
    return diffusers.Krea2Pipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        autoencoder,
        transformers.Qwen3VLModel(transformers.Qwen3VLConfig(text_config=words, vision_config=vision)),
        byte_tokenizer(),
        INSTANCES["krea2"].transformer(),
        text_encoder_select_layers=(1, 2),
    )


PIPELINE = TinyPipeline(_make, "krea2", call={"height": 16, "width": 16}, guided={"guidance_scale": 1.0})
