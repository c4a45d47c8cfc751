"""HiDream-I1, with experts as the published ones and without, which alone compiles to whole graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, text
from tiny.parts import byte_tokenizer, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer, vae

_HIDREAM = {
    "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
    "attention_head_dim": 8, "num_attention_heads": 2, "caption_channels": [12, 8], "text_emb_dim": 10,
    "num_routed_experts": 3, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (12, 12),
    "llama_layers": [0, 1, 1, 1],
}  # fmt: skip
_TEXT = text(
    5, 12, llama_hidden_states=lambda count: normal(count, 2, 3, 8), pooled_projections=lambda n: normal(n, 10)
)
INSTANCES = {
    "hidream": Tiny("HiDreamImageTransformer2DModel", _HIDREAM, (4, 8, 8), _TEXT, ({0, 1}, slice(0, 16), 16)),
    "hidream-wide": Tiny(  # not square: padded to 36 tokens, which are attended to
        "HiDreamImageTransformer2DModel",
        _HIDREAM | {"num_routed_experts": 0},
        (4, 6, 8),
        _TEXT,
        ({0, 1}, slice(0, 36), 36),
    ),
}  # fmt: skip


def _make() -> Any:
    clip = transformers.CLIPTextModelWithProjection
    first, second = clip_encoder(4), clip_encoder(6)
    first.max_position_embeddings = second.max_position_embeddings = 128  # the length that the pipeline pads to
    llama = transformers.LlamaConfig(
        vocab_size=300, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    tiny = INSTANCES["hidream"]  # the pipeline draws 128 by 128 latents, whatever it is asked for
    return diffusers.HiDreamImagePipeline(
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae(levels=1, shift_factor=0.06, mid_block_add_attention=False),
        clip(first),
        clip_tokenizer(),
        clip(second),
        clip_tokenizer(),
        t5_encoder(12),
        t5_tokenizer(),
        transformers.LlamaForCausalLM(llama),
        byte_tokenizer(model_max_length=24),
        replace(tiny, options=tiny.options | {"patch_size": 16}).transformer(),
    )


PIPELINE = TinyPipeline(
    _make,
    "hidream",
    call={"height": 128, "width": 128},
    scheduler=lambda own: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
)
