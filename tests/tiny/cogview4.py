"""CogView4."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import t5_tokenizer, vae

INSTANCES = {
    "cogview4": Tiny(
        "CogView4Transformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2,
         "text_embed_dim": 12, "time_embed_dim": 8, "condition_dim": 4, "sample_size": 8, "rope_axes_dim": (16, 16)},
        (4, 8, 8),
        text(5, 12),
        ({0, 1}, slice(-16, None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    config = transformers.GlmConfig(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(
        t5_tokenizer(), transformers.GlmModel(config), vae(levels=4), INSTANCES["cogview4"].transformer(), scheduler
    )


PIPELINE = TinyPipeline(_make, "cogview4", call={"height": 64, "width": 64})
