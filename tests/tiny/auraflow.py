"""AuraFlow."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import t5_tokenizer, vae

INSTANCES = {
    "auraflow": Tiny(
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
         "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16,
         "pos_embed_max_size": 64},
        (4, 8, 8),
        text(5, 12),
        ({0, 1}, slice(-16, None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    config = transformers.UMT5Config(vocab_size=60, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return diffusers.AuraFlowPipeline(
        t5_tokenizer(),
        transformers.UMT5EncoderModel(config),
        vae(),
        INSTANCES["auraflow"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


PIPELINE = TinyPipeline(_make, "auraflow", call={"height": 16, "width": 16})
