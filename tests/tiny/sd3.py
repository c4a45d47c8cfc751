"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, text
from tiny.parts import clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer, vae

_SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
}  # fmt: skip
_SD3_TEXT = text(5, 12, pooled_projections=lambda count: normal(count, 10))
INSTANCES = {
    "sd3": Tiny("SD3Transformer2DModel", _SD3, (4, 8, 8), _SD3_TEXT,
        ({0, 1}, slice(0, 16), 16),
    ),
    "sd3.5": Tiny(
        "SD3Transformer2DModel", _SD3 | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}, (4, 8, 8), _SD3_TEXT,
        ({0, 1, 2, 3}, slice(0, 16), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    clip = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        INSTANCES["sd3"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(shift_factor=0.06),
        clip(clip_encoder(4)),
        clip_tokenizer(),
        clip(clip_encoder(6)),
        clip_tokenizer(),
        t5_encoder(12),
        t5_tokenizer(),
    )


PIPELINE = TinyPipeline(_make, "sd3")
