"""HunyuanVideo."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, ragged, text
from tiny.parts import clip_encoder, clip_tokenizer, word_tokenizer

INSTANCES = {
    "hunyuan-video": Tiny(
        "HunyuanVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
         "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 12,
         "pooled_projection_dim": 10, "rope_axes_dim": (4, 2, 2)},
        (4, 2, 8, 8),
        text(
            7, 12, encoder_attention_mask=ragged, pooled_projections=lambda count: normal(count, 10),
            guidance=lambda count: torch.full((count,), 3.5),
        ),
        ({1, 2}, slice(0, 32), 32),  # the refiner of the text attends first
    ),
}  # fmt: skip


def _make() -> Any:
    autoencoder = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
    )
    llama = transformers.LlamaConfig(
        vocab_size=60, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    clip = clip_encoder(10)
    clip.max_position_embeddings = 77  # which the pipeline takes for granted
    return diffusers.HunyuanVideoPipeline(
        transformers.LlamaModel(llama),
        word_tokenizer(),
        INSTANCES["hunyuan-video"].transformer(),
        autoencoder,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformers.CLIPTextModel(clip),
        clip_tokenizer(),
    )


PIPELINE = TinyPipeline(_make, "hunyuan-video", call={"height": 32, "width": 32, "num_frames": 5})
