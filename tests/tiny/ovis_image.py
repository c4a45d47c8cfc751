"""Ovis-Image: text first."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import TEMPLATE, byte_tokenizer, vae

INSTANCES = {
    "ovis-image": Tiny(
        "OvisImageTransformer2DModel",
        {"in_channels": 16, "out_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 6, 6)},
        (4, 8, 8),
        text(5, 12),
        oracle=({0, 1}, slice(-16, None), 16),
    )
}  # fmt: skip


def _make() -> Any:
    config = transformers.Qwen3Config(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return diffusers.OvisImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae(shift_factor=0.06),
        transformers.Qwen3Model(config),
        byte_tokenizer(chat_template=TEMPLATE),
        INSTANCES["ovis-image"].transformer(),
    )


PIPELINE = TinyPipeline(_make, "ovis-image", call={"height": 16, "width": 16}, lora_loader=False)
