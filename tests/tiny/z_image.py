"""Z-Image."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import TEMPLATE, byte_tokenizer, vae

INSTANCES = {
    "z-image": Tiny(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 12, "axes_dims": [4, 6, 6], "axes_lens": [64, 16, 16]},
        (4, 8, 8),
        text(7, 12),
        ({2, 3}, slice(0, 32), 32),
    ),
    "z-image-ragged": Tiny(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 12, "axes_dims": [4, 6, 6], "axes_lens": [128, 16, 16]},
        (4, 6, 6),
        text(40, 12, encoder_attention_mask=lambda n: torch.arange(40)[None] < 20 + 15 * torch.arange(n)[:, None]),
        ({2, 3}, slice(0, 32), 32),
    ),
}  # fmt: skip


def _make() -> Any:
    config = transformers.Qwen3Config(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    return diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(shift_factor=0.06),
        transformers.Qwen3Model(config),
        tokenizer,
        INSTANCES["z-image"].transformer(),
    )


PIPELINE = TinyPipeline(_make, "z-image", call={"height": 16, "width": 16}, guided={"guidance_scale": 1.0})
