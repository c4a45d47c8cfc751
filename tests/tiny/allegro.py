"""Allegro: its autoencoder has whole tiles of 24 frames, and of 121 pixels or more."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import t5_encoder, t5_tokenizer, trailing_ddim

INSTANCES = {
    "allegro": Tiny(
        "AllegroTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3, "cross_attention_dim": 24,
         "caption_channels": 12, "sample_height": 8, "sample_width": 8, "sample_frames": 2},
        (4, 2, 8, 8),
        text(7, 12, encoder_attention_mask=ragged),
        ({0, 2}, slice(None), 32),
        flow=False,
    ),
}  # fmt: skip


def _make() -> Any:
    autoencoder = diffusers.AutoencoderKLAllegro(
        block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2, sample_size=128, scaling_factor=0.5
    )
    return diffusers.AllegroPipeline(
        t5_tokenizer(),
        t5_encoder(12),
        autoencoder,
        INSTANCES["allegro"].transformer(),
        diffusers.EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"),
    )


PIPELINE = TinyPipeline(
    _make,
    "allegro",
    call={"height": 128, "width": 128, "num_frames": 21, "clean_caption": False},
    scheduler=trailing_ddim,
    given_times=False,  # its call has timesteps=, but sets its scheduler again without them
    lora_loader=False,
)
