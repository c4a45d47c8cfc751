"""DiT: class labels, a variance-preserving schedule."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny.instance import Tiny, TinyPipeline, labels
from tiny.parts import vae

INSTANCES = {
    "dit": Tiny(
        "DiTTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
         "sample_size": 8, "num_embeds_ada_norm": 5},
        (4, 8, 8),
        labels,
        ({0, 1}, slice(None), 16),
        flow=False,
    ),
    "dit-timm": Tiny("DiT", {}, (4, 8, 8), labels,
        ({0, 1}, slice(None), 16),
        flow=False,
    ),
}  # fmt: skip


def _make() -> Any:
    parts = {"vae": vae(), "scheduler": diffusers.DDIMScheduler()}
    return diffusers.DiTPipeline(transformer=INSTANCES["dit"].transformer(), **parts)


PIPELINE = TinyPipeline(_make, "dit", given_times=False, lora_loader=False)
