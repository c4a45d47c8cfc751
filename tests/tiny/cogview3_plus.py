"""CogView3-Plus: text first; trained with a noise schedule of variance-preserving diffusion."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, text
from tiny.parts import t5_encoder, t5_tokenizer, vae

INSTANCES = {
    "cogview3-plus": Tiny(
        "CogView3PlusTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2,
         "text_embed_dim": 12, "time_embed_dim": 8, "condition_dim": 4, "sample_size": 8, "pos_embed_max_size": 8},
        (4, 8, 8),
        text(5, 12),
        ({0, 1}, slice(-16, None), 16),
        flow=False,
    ),
}  # fmt: skip


def _make() -> Any:
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", rescale_betas_zero_snr=True,
        snr_shift_scale=4.0, timestep_spacing="linspace",
    )  # fmt: skip
    return diffusers.CogView3PlusPipeline(
        t5_tokenizer(), t5_encoder(12), vae(levels=4), INSTANCES["cogview3-plus"].transformer(), scheduler
    )


def _scheduler(own: Any) -> Any:
    return diffusers.CogVideoXDDIMScheduler.from_config(own.config, timestep_spacing="trailing")


PIPELINE = TinyPipeline(
    _make,
    "cogview3-plus",
    call={"height": 64, "width": 64},
    scheduler=_scheduler,
    given_times=False,
    lora_loader=False,
)
