"""PRX: its text encoder's folder has the configuration of encoder and decoder, as the published ones."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from tiny.instance import Tiny, TinyPipeline, ragged, text
from tiny.parts import byte_tokenizer, vae

INSTANCES = {
    "prx": Tiny(
        "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": 12, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2, "depth": 3,
         "axes_dim": [4, 4]},
        (4, 8, 8),
        text(5, 12, encoder_attention_mask=lambda count: ragged(count, 5)),
        ({0, 1}, slice(-16, None), 16),
    ),
}  # fmt: skip


def _make() -> Any:
    config = T5GemmaModuleConfig(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    both = transformers.T5GemmaConfig(encoder=config, decoder=config)
    encoder = T5GemmaEncoder(both.encoder)
    encoder.config = both
    return diffusers.PRXPipeline(
        INSTANCES["prx"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        encoder,
        byte_tokenizer(model_max_length=24),
        vae(shift_factor=0.06),
    )


PIPELINE = TinyPipeline(
    _make,
    "prx",
    call={"height": 16, "width": 16, "use_resolution_binning": False},
    prompts=1,  # of several, guided, it gives the transformer two times for the rows of all
    needs="ftfy",
    lora_loader=False,
)
