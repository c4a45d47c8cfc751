"""Sana: linear self-attention, masked text by cross-attention."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import word_tokenizer

INSTANCES = {
    "sana": Tiny(
        "SanaTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3,
         "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
         "caption_channels": 12, "sample_size": 4, "qk_norm": "rms_norm_across_heads"},
        (4, 4, 4),
        text(7, 12, encoder_attention_mask=ragged),
        ({0, 1}, slice(None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4, encoder_qkv_multiscales=((),) * 4, decoder_qkv_multiscales=((),) * 4,
        decoder_norm_types="rms_norm", upsample_block_type="interpolate", scaling_factor=0.4,
    )  # fmt: skip
    return diffusers.SanaPipeline(
        word_tokenizer(),
        transformers.Gemma2Model(config),
        autoencoder,
        INSTANCES["sana"].transformer(),
        diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


PIPELINE = TinyPipeline(
    _make,
    "sana",
    call={"height": 32, "width": 32, "use_resolution_binning": False},
    scheduler=lambda own: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
)
