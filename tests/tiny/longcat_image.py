"""LongCat-Image: text first; its pipeline takes 16 channels of latents for granted."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import TEMPLATE, byte_tokenizer, vae

INSTANCES = {
    "longcat-image": Tiny(
        "LongCatImageTransformer2DModel",
        {"in_channels": 64, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16,
         "axes_dims_rope": [4, 6, 6]},
        (16, 8, 8),
        text(5, 16),
        oracle=({0, 1}, slice(-16, None), 16),
    )
}  # fmt: skip


def _make() -> Any:
    words = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=words, vision_config=vision)
    return diffusers.LongCatImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae(channels=16, shift_factor=0.06),
        transformers.Qwen2_5_VLForConditionalGeneration(config),
        byte_tokenizer(chat_template=TEMPLATE),
        byte_tokenizer(chat_template=TEMPLATE),  # for a processor, which needs torchvision and is not called
        INSTANCES["longcat-image"].transformer(),
    )


PIPELINE = TinyPipeline(
    _make,
    "longcat-image",
    call={"height": 16, "width": 16, "enable_prompt_rewrite": False},
    guided={"guidance_scale": 2.0, "negative_prompt": ["", ""]},  # an empty one is not repeated for each prompt
    lora_loader=False,
)
