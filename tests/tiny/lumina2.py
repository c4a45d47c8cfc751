"""Lumina 2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import byte_tokenizer, vae

_LUMINA2 = {
    "sample_size": 8, "in_channels": 4, "hidden_size": 48, "num_layers": 3, "num_refiner_layers": 1,
    "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 16, "axes_dim_rope": (4, 4, 4),
    "axes_lens": (64, 16, 16), "cap_feat_dim": 12,
}  # fmt: skip
INSTANCES = {
    "lumina2": Tiny(
        "Lumina2Transformer2DModel",
        _LUMINA2,
        (4, 8, 8),
        text(5, 12, encoder_attention_mask=lambda count: torch.ones(count, 5, dtype=torch.bool)),
        ({2, 3}, slice(-16, None), 16),
    ),
    "lumina2-ragged": Tiny(
        "Lumina2Transformer2DModel", _LUMINA2, (4, 8, 8), text(5, 12, encoder_attention_mask=lambda n: ragged(n, 5)),
        ({2, 3}, [slice(3, 19), slice(4, 20)], 16),
    ),
}  # fmt: skip


def _make() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    tiny = INSTANCES["lumina2"]
    return diffusers.Lumina2Pipeline(
        replace(tiny, options=tiny.options | {"axes_lens": (300, 16, 16)}).transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae(levels=4, shift_factor=0.06),  # the pipeline takes a factor of 8 for granted
        transformers.Gemma2Model(config),
        byte_tokenizer(),
    )


PIPELINE = TinyPipeline(_make, "lumina2", call={"height": 64, "width": 64})
