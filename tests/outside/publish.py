"""Tiny teachers in the form in which the twelve families are published: class names, options, dtypes, shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny import PIPELINES

from ardistill.families import transformer_class

PUBLISHED = Path(__file__).parent / "published"
"""A folder per family with the published configurations; ORIGIN.md says where each was read."""
WIDTHS = {
    "num_attention_heads", "attention_head_dim", "num_layers", "num_single_layers", "num_mmdit_layers",
    "num_single_dit_layers", "dim", "hidden_size", "n_layers", "n_refiner_layers", "num_refiner_layers", "n_heads",
    "n_kv_heads", "num_kv_heads", "in_channels", "out_channels", "sample_size", "cross_attention_dim",
    "cross_attention_dim_t5", "caption_channels", "joint_attention_dim", "caption_projection_dim",
    "pooled_projection_dim", "pos_embed_max_size", "text_dim", "freq_dim", "ffn_dim", "rope_max_seq_len",
    "cap_feat_dim", "axes_dims", "axes_lens", "axes_dim_rope", "axes_dims_rope", "text_embed_dim",
    "time_embed_dim", "condition_dim", "rope_axes_dim", "multiple_of", "timestep_guidance_channels",
}  # fmt: skip
"""Options of the transformers that are made small; all others are as published."""
VAE_WIDTHS = {
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "base_dim": 4,
    "num_res_blocks": 1,
}


@dataclass(frozen=True)
class Storage:
    """How a family's weights are published."""

    dtype: torch.dtype = torch.float32
    encoders: torch.dtype | None = None
    """Of the text encoders, if it is another one."""
    variant: str | None = None
    """Name of the only set of weights, where there is none without a name."""
    shards: bool = False
    pickled: bool = False
    """In .bin files."""


STORAGE = {
    "dit": Storage(pickled=True),
    "pixart": Storage(shards=True),
    "hunyuandit": Storage(torch.float16),
    "wan": Storage(encoders=torch.bfloat16, shards=True),
    "sd3": Storage(torch.float16),
    "z-image": Storage(torch.bfloat16, shards=True),
    "flux": Storage(torch.bfloat16, shards=True),
    "flux2": Storage(torch.bfloat16),
    "auraflow": Storage(torch.float16, variant="fp16", shards=True),
    "qwen-image": Storage(torch.bfloat16, shards=True),
    "cogview4": Storage(torch.bfloat16, shards=True),
    "lumina2": Storage(torch.bfloat16),
}


def read(family: str, path: str) -> dict[str, Any]:
    """One of the published configurations."""
    return json.loads((PUBLISHED / family / path).read_text())


def _transformer(family: str, tiny: Any) -> tuple[Any, dict[str, Any]]:
    config = read(family, "transformer/config.json")
    config |= {key: tiny.config[key] for key in WIDTHS if tiny.config.get(key) is not None}
    model = transformer_class(config).from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model, config


def _vae(family: str, tiny: Any) -> Any:
    config = read(family, "vae/config.json")
    config |= {key: value for key, value in VAE_WIDTHS.items() if key in config}
    for key in ("latent_channels", "z_dim"):
        if key in config:
            config[key] = tiny.config[key]
    for key in ("latents_mean", "latents_std"):
        if config.get(key):
            config[key] = config[key][: config["z_dim"]]
    return getattr(diffusers, config["_class_name"]).from_config(config)


def publish(family: str, folder: Path, storage: Storage | None = None) -> Path:
    """Save a tiny teacher of a family as its published folder has it.

    Args:
        family: A key of ``STORAGE``.
        folder: New folder.
        storage: How weights are stored; as published if not given.
    """
    storage = storage or STORAGE[family]
    torch.manual_seed(0)
    pipeline = PIPELINES[family].make()
    transformer, config = _transformer(family, pipeline.transformer)
    shards = {"max_shard_size": "20KB"} if storage.shards else {}
    options: dict[str, Any] = {"variant": storage.variant, **shards}
    index = read(family, "model_index.json")
    parts = dict(pipeline.components) | {"transformer": transformer, "vae": _vae(family, pipeline.vae)}
    parts.pop("scheduler")
    for name, part in parts.items():
        if part is None:
            continue
        given: dict[str, Any] = {}
        if isinstance(part, torch.nn.Module):
            part.to(storage.encoders if storage.encoders and name.startswith("text") else storage.dtype)
            given = options | ({"safe_serialization": False} if storage.pickled else {})
        part.save_pretrained(folder / name, **given)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    (folder / "scheduler").mkdir()
    scheduler = read(family, "scheduler/scheduler_config.json")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
