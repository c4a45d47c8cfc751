"""PixArt-alpha and PixArt-Sigma."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import t5_encoder, t5_tokenizer, trailing_ddim, vae

INSTANCES = {
    "pixart-alpha": Tiny(
        "PixArtTransformer2DModel",
        {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 3, "cross_attention_dim": 24,
         "sample_size": 8, "caption_channels": 12, "use_additional_conditions": True},
        (4, 8, 8),
        text(7, 12, encoder_attention_mask=ragged),
        ({0, 2}, slice(None), 16),
        flow=False,
    ),
    "pixart-sigma": Tiny(
        "PixArtTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "cross_attention_dim": 16,
         "sample_size": 8, "caption_channels": 12, "use_additional_conditions": False},
        (4, 8, 8),
        text(7, 12, encoder_attention_mask=ragged),
        ({0, 2}, slice(None), 16),
        flow=False,
    ),
}  # fmt: skip


def _make() -> Any:
    return diffusers.PixArtSigmaPipeline(
        t5_tokenizer(),
        t5_encoder(12),
        vae(),
        INSTANCES["pixart-sigma"].transformer(),
        diffusers.DPMSolverMultistepScheduler(),
    )


PIPELINE = TinyPipeline(
    _make,
    "pixart-sigma",
    call={"use_resolution_binning": False, "clean_caption": False},
    lora_loader=False,
    scheduler=trailing_ddim,
)
