"""HunyuanImage 2.1: a guider stands beside the transformer; before its sixth step, it guides plainly."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, ragged, text
from tiny.parts import byte_tokenizer, t5_encoder

INSTANCES = {
    "hunyuan-image": Tiny(
        "HunyuanImageTransformer2DModel",
        {"in_channels": 64, "out_channels": 64, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
         "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 16,
         "text_embed_2_dim": 8, "rope_axes_dim": (4, 4)},
        (64, 4, 4),
        text(
            5, 16, encoder_attention_mask=lambda count: ragged(count, 5).long(),
            encoder_hidden_states_2=lambda count: normal(count, 4, 8),
            encoder_attention_mask_2=lambda count: (ragged(count, 4) & (torch.arange(count) > 0)[:, None]).long(),
        ),
        ({1, 2}, slice(0, 16), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    language = sizes | {
        "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    autoencoder = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=64, block_out_channels=(64, 128), layers_per_block=1,
        spatial_compression_ratio=2, sample_size=16, scaling_factor=0.75289,
    )  # fmt: skip
    return diffusers.HunyuanImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        autoencoder,
        transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=language, vision_config=vision)
        ),
        byte_tokenizer(),
        t5_encoder(8),
        transformers.ByT5Tokenizer(),
        INSTANCES["hunyuan-image"].transformer(),
        guider=diffusers.AdaptiveProjectedMixGuidance(guidance_scale=2.0),
    )


PIPELINE = TinyPipeline(_make, "hunyuan-image", call={"height": 8, "width": 8}, guided={}, lora_loader=False)
