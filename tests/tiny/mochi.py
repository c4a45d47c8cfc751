"""Mochi: each row attends by itself, to as much of its prompt as counts."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import t5_encoder, t5_tokenizer

INSTANCES = {
    "mochi": Tiny(
        "MochiTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "pooled_projection_dim": 16,
         "in_channels": 12, "text_embed_dim": 16, "time_embed_dim": 8},
        (12, 2, 4, 4),
        text(7, 16, encoder_attention_mask=ragged),
        ({0, 1}, slice(0, 8), 8),
    ),
}  # fmt: skip


def _make() -> Any:
    autoencoder = diffusers.AutoencoderKLMochi(  # of 12 channels, which the pipeline takes for granted
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(
        scheduler,
        autoencoder,
        t5_encoder(16),
        t5_tokenizer(),
        INSTANCES["mochi"].transformer(),
        force_zeros_for_empty_prompt=True,
    )


PIPELINE = TinyPipeline(
    _make,
    "mochi",
    call={"height": 32, "width": 32, "num_frames": 7},
    given_times=False,  # its call has timesteps=, but passes them on beside sigmas of its own, which diffusers refuses
)
