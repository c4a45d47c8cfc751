"""HunyuanDiT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import transformers

from tiny.instance import Tiny, TinyPipeline, normal, ragged, text
from tiny.parts import WORDS, t5_encoder, t5_tokenizer, trailing_ddim, vae

INSTANCES = {
    "hunyuandit": Tiny(
        "HunyuanDiT2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "patch_size": 2, "sample_size": 8,
         "hidden_size": 32, "num_layers": 4, "cross_attention_dim": 16, "cross_attention_dim_t5": 16,
         "pooled_projection_dim": 8, "text_len": 5, "text_len_t5": 6},
        (4, 8, 8),
        text(
            5, 16, text_embedding_mask=lambda count: ragged(count, 5).long(),
            encoder_hidden_states_t5=lambda count: normal(count, 6, 16),
            text_embedding_mask_t5=lambda count: ragged(count, 6).long(),
        ),
        ({0, 2}, slice(None), 16),
        flow=False,
    ),
}  # fmt: skip


def _make() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    bert = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    tiny = INSTANCES["hunyuandit"]
    return diffusers.HunyuanDiTPipeline(
        vae(levels=4),
        transformers.BertModel(bert),
        transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=77),
        replace(tiny, options=tiny.options | {"text_len": 77, "text_len_t5": 256}).transformer(),
        diffusers.DDPMScheduler(prediction_type="v_prediction"),
        None,
        None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(16),
        tokenizer_2=t5_tokenizer(),
    )


PIPELINE = TinyPipeline(
    _make,
    "hunyuandit",
    call={"height": 64, "width": 64, "use_resolution_binning": False},
    given_times=False,
    lora_loader=False,
    scheduler=trailing_ddim,
)
