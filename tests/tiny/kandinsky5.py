"""Kandinsky 5.0 Image: its pipeline draws images of seven sizes, whatever it is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, text
from tiny.parts import byte_tokenizer, clip_encoder, clip_tokenizer, vae

INSTANCES = {
    "kandinsky5": Tiny(
        "Kandinsky5Transformer3DModel",
        {"in_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 10, "time_dim": 16, "out_visual_dim": 4,
         "model_dim": 16, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 3, "axes_dims": (4, 2, 2)},
        (4, 8, 8),
        text(5, 16, pooled_projections=lambda count: normal(count, 10)),
        ({1, 3}, slice(None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    language = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    clip = clip_encoder(10)
    clip.max_position_embeddings = 77
    tiny = INSTANCES["kandinsky5"]
    small = tiny.options | {"model_dim": 8, "num_visual_blocks": 2}  # as an image is 3,520 tokens: one head
    return diffusers.Kandinsky5T2IPipeline(
        replace(tiny, options=small).transformer(),
        vae(levels=4, width=1, shift_factor=0.06, mid_block_add_attention=False),
        transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=language, vision_config=vision)
        ),
        byte_tokenizer(),
        transformers.CLIPTextModel(clip),
        clip_tokenizer(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINE = TinyPipeline(
    _make, "kandinsky5", call={"height": 1408, "width": 640}, given_times=False, solver_steps=25, drawn_as=(1, 2, 0)
)
