"""HunyuanVideo 1.5: more channels than latents have, and a guider that its pipeline cannot do without."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, ragged, text
from tiny.parts import TEMPLATE, byte_tokenizer, t5_encoder

INSTANCES = {
    "hunyuan-video15": Tiny(
        "HunyuanVideo15Transformer3DModel",
        {"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
         "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 16, "text_embed_2_dim": 8, "image_embed_dim": 6,
         "rope_axes_dim": (4, 2, 2), "task_type": "t2v"},
        (4, 2, 4, 4),
        text(
            5, 16, encoder_attention_mask=lambda count: ragged(count, 5),
            encoder_hidden_states_2=lambda count: normal(count, 4, 8),
            encoder_attention_mask_2=lambda count: ragged(count, 4) & (torch.arange(count) > 0)[:, None],
        ),
        ({1, 2}, slice(0, 32), 32),  # the refiner of the text attends first
    ),
}  # fmt: skip


def _make() -> Any:
    language = transformers.Qwen2_5_VLTextConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=3, num_key_value_heads=2,
        vocab_size=300, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(32, 32), layers_per_block=1, spatial_compression_ratio=2,
        temporal_compression_ratio=1,
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return diffusers.HunyuanVideo15Pipeline(
        transformers.Qwen2_5_VLTextModel(language),
        tokenizer,
        INSTANCES["hunyuan-video15"].transformer(),
        autoencoder,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        t5_encoder(8),
        transformers.ByT5Tokenizer(),
        diffusers.ClassifierFreeGuidance(guidance_scale=2.0),
    )


PIPELINE = TinyPipeline(
    _make, "hunyuan-video15", call={"height": 8, "width": 8, "num_frames": 3}, guided={}, lora_loader=False,
    prompts=1, drawn=1,  # its autoencoder decodes one video alone
)  # fmt: skip
