"""Bria 3.2: text first, prompts padded with zeros; its call takes no times together with its schedulers."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import t5_encoder, t5_tokenizer, vae

INSTANCES = {
    "bria": Tiny(
        "BriaTransformer2DModel",
        {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": [4, 6, 6]},
        (4, 8, 8),
        text(5, 12),
        oracle=({0, 1}, slice(-16, None), 16),
    )
}  # fmt: skip


def _make() -> Any:
    return diffusers.BriaPipeline(
        INSTANCES["bria"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae(shift_factor=0.06),
        t5_encoder(12),
        t5_tokenizer(),
    )


PIPELINE = TinyPipeline(_make, "bria", call={"height": 16, "width": 16}, given_times=False, lora_loader=False)
