"""CogVideoX: with sums of sines for positions as its 2B, with rotary ones as its 5B, and version 1.5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import t5_encoder, t5_tokenizer

_SINES = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3,
    "time_embed_dim": 48, "text_embed_dim": 12, "max_text_seq_length": 7, "sample_width": 8, "sample_height": 8,
    "sample_frames": 5, "norm_elementwise_affine": False,
}  # fmt: skip
_ROTARY = {"use_rotary_positional_embeddings": True, "sample_width": 12}
_FIRST = ({0, 1}, slice(-8, None), 8)

INSTANCES = {
    "cogvideox": Tiny("CogVideoXTransformer3DModel", _SINES, (4, 2, 4, 4), text(7, 12), _FIRST, flow=False),
    "cogvideox-1.5": Tiny(
        "CogVideoXTransformer3DModel",
        _SINES | _ROTARY | {"patch_size_t": 2, "patch_bias": False},
        (4, 4, 4, 4),
        text(7, 12),
        _FIRST,
        flow=False,
    ),
}


def _make() -> Any:
    autoencoder = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, scaling_factor=0.7
    )
    scheduler = diffusers.CogVideoXDPMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=2.0, timestep_spacing="trailing"
    )
    tiny = INSTANCES["cogvideox"]
    return diffusers.CogVideoXPipeline(
        t5_tokenizer(),
        t5_encoder(12),
        autoencoder,
        replace(tiny, options=_SINES | _ROTARY).transformer(),
        scheduler,
    )


def _scheduler(own: Any) -> Any:
    """The published one is of a higher order and adds noise."""
    return diffusers.CogVideoXDDIMScheduler.from_config(own.config)


PIPELINE = TinyPipeline(
    _make,
    "cogvideox",
    call={"height": 32, "width": 32, "num_frames": 5},
    scheduler=_scheduler,
    given_times=False,  # its call has timesteps=, which its schedulers do not take
    drawn_as=(1, 0, 2, 3),
)
