"""A tiny LTX-Video."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import t5_encoder, t5_tokenizer

INSTANCES = {
    "ltx": Tiny(
        "LTXVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
         "cross_attention_dim": 16, "caption_channels": 12},
        (4, 2, 4, 4),
        text(7, 12, encoder_attention_mask=ragged),
        ({0, 2}, slice(None), 32),  # a block attends to the video, then to the text
    ),
}  # fmt: skip


def autoencoder(**options: Any) -> Any:
    """Of its factors of 32 and 8, which its positions take for granted."""
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, **options,
    )  # fmt: skip


def _make() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    vae = autoencoder(scaling_factor=0.5, timestep_conditioning=True)
    vae.latents_mean.uniform_(-1, 1)
    vae.latents_std.uniform_(0.5, 2)
    return diffusers.LTXPipeline(scheduler, vae, t5_encoder(12), t5_tokenizer(), INSTANCES["ltx"].transformer())


PIPELINE = TinyPipeline(
    _make,
    "ltx",
    call={"height": 64, "width": 64, "num_frames": 9},
    given_times=False,  # its call has timesteps=, but passes them on beside sigmas of its own, which diffusers refuses
)
