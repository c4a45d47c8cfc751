"""SkyReels-V2."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import euler, t5_tokenizer

INSTANCES = {
    "skyreels-v2": Tiny(
        "SkyReelsV2Transformer3DModel",
        {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
         "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3, "rope_max_seq_len": 64},
        (4, 4, 4, 4),
        text(5, 12),
        ({0, 2}, slice(None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1] * 4, latents_std=[1.5] * 4, scale_factor_spatial=4, scale_factor_temporal=2,
    )  # fmt: skip
    config = transformers.UMT5Config(vocab_size=60, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return diffusers.SkyReelsV2Pipeline(
        t5_tokenizer(),
        transformers.UMT5EncoderModel(config),
        INSTANCES["skyreels-v2"].transformer(),
        autoencoder,
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
    )


PIPELINE = TinyPipeline(
    _make,
    "skyreels-v2",
    call={"height": 16, "width": 16, "num_frames": 3},
    given_times=False,
    scheduler=euler,
)
