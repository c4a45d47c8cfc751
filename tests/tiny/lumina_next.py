"""Lumina-Next: masked text by cross-attention, all queries and keys scaled by the size of the image."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import t5_tokenizer, vae

INSTANCES = {
    "lumina-next": Tiny(
        "LuminaNextDiT2DModel",
        {"sample_size": 12, "in_channels": 4, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 4,
         "num_kv_heads": 2, "multiple_of": 16, "cross_attention_dim": 16},
        (4, 8, 8),
        text(7, 16, encoder_attention_mask=ragged),
        ({0, 2}, slice(None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    config = transformers.GemmaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return diffusers.LuminaPipeline(
        INSTANCES["lumina-next"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        vae(levels=4, shift_factor=0.06),  # the pipeline takes a factor of 8 for granted
        transformers.GemmaModel(config),
        t5_tokenizer(),  # an empty prompt has a token, as there
    )


PIPELINE = TinyPipeline(
    _make, "lumina-next", call={"height": 64, "width": 64, "clean_caption": False}, lora_loader=False
)
