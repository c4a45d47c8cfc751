"""Original DiT checkpoints (``.pt`` files of facebookresearch/DiT), converted to diffusers models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import Tensor

NUM_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width -> number of heads of S, B, L and XL (Peebles & Xie 2023, arXiv:2212.09748, Table 1), which a state dict does
not tell."""


def convert_weights(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an original DiT's weights to diffusers' names.

    diffusers has an embedder of time and label in each block; the original's only one is copied into all of them.
    """
    converted: dict[str, Tensor] = {}

    def copy(new: str, old: str) -> None:
        for kind in ("weight", "bias"):
            converted[f"{new}.{kind}"] = original[f"{old}.{kind}"]

    copy("pos_embed.proj", "x_embedder.proj")
    for i in range(count_blocks(original)):
        new, old = f"transformer_blocks.{i}", f"blocks.{i}"
        copy(f"{new}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
        copy(f"{new}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        labels = original["y_embedder.embedding_table.weight"]
        converted[f"{new}.norm1.emb.class_embedder.embedding_table.weight"] = labels
        copy(f"{new}.norm1.linear", f"{old}.adaLN_modulation.1")
        for kind in ("weight", "bias"):
            parts = original[f"{old}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                converted[f"{new}.attn1.{name}.{kind}"] = part
        copy(f"{new}.attn1.to_out.0", f"{old}.attn.proj")
        copy(f"{new}.ff.net.0.proj", f"{old}.mlp.fc1")
        copy(f"{new}.ff.net.2", f"{old}.mlp.fc2")
    copy("proj_out_1", "final_layer.adaLN_modulation.1")
    copy("proj_out_2", "final_layer.linear")
    return converted


def count_blocks(original: dict[str, Tensor]) -> int:
    """Number of transformer blocks in a state dict."""
    return 1 + max(int(name.split(".")[1]) for name in original if name.startswith("blocks."))


def load_original_dit(path: str | Path) -> tuple[Any, DDIMScheduler]:
    """Load a transformer and the scheduler it was trained with from a ``.pt`` file, with EMA weights if it has them.

    The frequencies of the time embedding are spaced by 1/127, as in diffusers and the published facebook/DiT-XL-2-256;
    the original code spaces them by 1/128. The model is therefore the same after saving and loading.

    Raises:
        ValueError: The file is not a state dict of the original DiT, or its width is unknown.
    """
    try:
        original = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a state dict ({type(error).__name__}: {error}); download it again, or save its "
            "tensors alone"
        ) from error
    for name in ("ema", "model"):
        if isinstance(original, dict) and name in original:
            original = original[name]
            break
    if not isinstance(original, dict) or not {"x_embedder.proj.weight", "blocks.0.attn.qkv.weight"} <= set(original):
        raise ValueError(f"{path}: expected a state dict of the original DiT (x_embedder, blocks, final_layer)")
    width, channels, patch, _ = original["x_embedder.proj.weight"].shape
    if width not in NUM_HEADS:
        raise ValueError(f"{path}: expected a width among {', '.join(map(str, NUM_HEADS))}, got {width}")
    options: dict[str, Any] = {
        "num_attention_heads": NUM_HEADS[width],
        "attention_head_dim": width // NUM_HEADS[width],
        "in_channels": channels,
        "out_channels": len(original["final_layer.linear.bias"]) // patch**2,
        "num_layers": count_blocks(original),
        "sample_size": math.isqrt(original["pos_embed"].shape[1]) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(original["y_embedder.embedding_table.weight"]) - 1,
    }
    transformer: Any = DiTTransformer2DModel(**options)
    missing, unexpected = transformer.load_state_dict(convert_weights(original), strict=False)
    if unexpected or [name for name in missing if "pos_embed.pos_embed" not in name]:
        raise ValueError(f"{path}: weights do not match a DiT: missing {missing}, unexpected {unexpected}")
    return transformer, DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
