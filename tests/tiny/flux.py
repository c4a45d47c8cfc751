"""FLUX.1."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, text
from tiny.parts import clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer, vae

INSTANCES = {
    "flux": Tiny(
        "FluxTransformer2DModel",
        {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 10,
         "axes_dims_rope": (4, 6, 6), "guidance_embeds": True},
        (4, 8, 8),
        text(5, 12, pooled_projections=lambda n: normal(n, 10), guidance=lambda n: torch.full((n,), 3.5)),
        ({0, 1}, slice(-16, None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return diffusers.FluxPipeline(
        scheduler,
        vae(shift_factor=0.06),
        transformers.CLIPTextModel(clip_encoder(10)),
        clip_tokenizer(),
        t5_encoder(12),
        t5_tokenizer(),
        INSTANCES["flux"].transformer(),
    )


PIPELINE = TinyPipeline(_make, "flux", call={"height": 16, "width": 16})
