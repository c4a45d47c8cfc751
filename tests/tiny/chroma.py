"""Chroma, with a mask of floats, as its pipeline makes it."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import t5_encoder, t5_tokenizer, vae

INSTANCES = {
    "chroma": Tiny(
        "ChromaTransformer2DModel",
        {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 6, 6),
         "approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 2},
        (4, 8, 8),
        text(5, 12, encoder_attention_mask=lambda count: ragged(count, 5).float()),
        ({0, 1}, slice(-16, None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    return diffusers.ChromaPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae(shift_factor=0.06),
        t5_encoder(12),
        t5_tokenizer(),
        INSTANCES["chroma"].transformer(),
    )


PIPELINE = TinyPipeline(_make, "chroma", call={"height": 16, "width": 16})
