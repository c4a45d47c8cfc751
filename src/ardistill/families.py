"""What differs from one architecture to the next, as data: one row a family, and at most one small function each.

Latents are what the ODE runs on, (b, c, h, w) or, for video, (b, c, f, h, w). Timesteps are in [0, 1000], noise at
1000. A family says which of the transformer's modules attend, how its forward is called, and how its output reads as a
prediction of the teacher's type; the signs and scales are those of the family's own diffusers pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn

Condition = dict[str, Tensor]
"""What the transformer is conditioned on besides the time, one row per sample: for DiT ``class_labels`` (b,), for text
``encoder_hidden_states`` (b, t, d) and what else the family needs."""


def _first(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return result[0]


def _negated(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return -result[0]


def _patches(transformer: Any, hidden_states: Tensor) -> int:
    size = transformer.config.patch_size
    return math.prod(hidden_states.shape[-2:]) // size**2


def _packed(transformer: Any, hidden_states: Tensor) -> int:
    return hidden_states.shape[1]


def _pack(latents: Tensor, size: int) -> Tensor:
    """(b, c, h, w) -> (b, tokens, c size²)."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // size, size, w // size, size).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * size**2)


def _unpack(tokens: Tensor, latents: Tensor, size: int) -> Tensor:
    """(b, tokens, c size²) -> (b, c, h, w), h and w as in ``latents``."""
    b, _, h, w = latents.shape
    return tokens.view(b, h // size, w // size, -1, size, size).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)


def _grid(height: int, width: int, axes: int, device: torch.device) -> Tensor:
    """Positions (height * width, axes): row and column in axes 1 and 2, else 0."""
    ids = torch.zeros(height, width, axes, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)


def _dit(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    return {"hidden_states": latents, "timestep": timestep, **condition}


def _pixart(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    extra = {name: condition.get(name) for name in ("resolution", "aspect_ratio")}
    text = {k: v for k, v in condition.items() if k not in extra}
    return {"hidden_states": latents, "timestep": timestep, "added_cond_kwargs": extra, **text}


def _hunyuan(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    config = transformer.config
    size = tuple(n // config.patch_size for n in latents.shape[-2:])
    rotary = get_2d_rotary_pos_embed(
        config.attention_head_dim, ((0, 0), size), size, device=latents.device, output_type="pt"
    )
    return {"hidden_states": latents, "timestep": timestep, "image_rotary_emb": rotary, **condition}


def _z_image(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    text, mask = condition["encoder_hidden_states"], condition.get("encoder_attention_mask")
    rows = [x if mask is None else x[mask[i].bool()] for i, x in enumerate(text)]
    return {"x": list(latents.unsqueeze(2).unbind(0)), "t": 1 - timestep / 1000, "cap_feats": rows}


def _z_image_output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return -torch.stack(list(result[0])).squeeze(2)


def _z_image_tokens(transformer: Any, x: list[Tensor]) -> int:
    size = transformer.config.all_patch_size[0]
    return -(-math.prod(x[0].shape[-2:]) // size**2 // 32) * 32  # padded to a multiple of 32


def _flux(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    height, width = (n // 2 for n in latents.shape[-2:])
    ids = {
        "img_ids": _grid(height, width, 3, latents.device),
        "txt_ids": torch.zeros(condition["encoder_hidden_states"].shape[1], 3, device=latents.device),
    }
    return {"hidden_states": _pack(latents, 2), "timestep": timestep / 1000, **ids, **condition}


def _flux_output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return _unpack(result[0], latents, 2)


def _flux2(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    batch, tokens = condition["encoder_hidden_states"].shape[:2]
    text_ids = torch.zeros(tokens, 4, device=latents.device)
    text_ids[:, 3] = torch.arange(tokens, device=latents.device)
    image_ids = _grid(*latents.shape[-2:], 4, latents.device)
    ids = {"img_ids": image_ids.repeat(batch, 1, 1), "txt_ids": text_ids.repeat(batch, 1, 1)}
    return {"hidden_states": _pack(latents, 1), "timestep": timestep / 1000, **ids, **condition}


def _flux2_output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return _unpack(result[0], latents, 1)


def _auraflow(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    return {"hidden_states": latents, "timestep": timestep / 1000, **condition}


def _qwen(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    height, width = (n // 2 for n in latents.shape[-2:])
    shapes = [[(1, height, width)]] * len(latents)
    return {"hidden_states": _pack(latents, 2), "timestep": timestep / 1000, "img_shapes": shapes, **condition}


def _lumina2(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    lengths = condition["encoder_attention_mask"].sum(1)
    if (lengths != lengths[0]).any():
        raise ValueError(
            f"Lumina2 needs prompts of equal length within a batch (image keys would stand at another offset in each "
            f"row), got {lengths.unique().tolist()} tokens; pad the prompts alike or use a batch of 1"
        )
    return {"hidden_states": latents, "timestep": 1 - timestep / 1000, **condition}


@dataclass(frozen=True)
class Family:
    """How to find the self-attention of a transformer class and how to call it."""

    block_lists: tuple[str, ...]
    """Attributes that hold the blocks, in the order they run."""
    attention: tuple[str, ...]
    """Self-attention of a block; the second of a pair may be absent."""
    head: tuple[str, ...]
    """The linear layers after the last block: what the direct output has once per step."""
    inputs: Callable[[Any, Tensor, Tensor, Condition], dict[str, Any]] = _dit
    """(transformer, latents, timestep (b,), condition) -> arguments of its forward."""
    output: Callable[[Any, Any, Tensor], Tensor] = _first
    """(transformer, what its forward returned, latents) -> prediction, as latents; a learned sigma behind it."""
    text: str = ""
    """Where text keys stand in joint attention: ``first``, ``last``, or nowhere. History has image keys only."""
    image_tokens: Callable[[Any, Any], int] = _patches
    """(transformer, first argument of its forward) -> image tokens of a sample; asked only where there is text."""
    pipeline: str = ""
    """diffusers' pipeline class of the family, for a teacher whose folder names none."""
    has_checkpointing: bool = True
    """Whether diffusers' class has gradient checkpointing."""

    def blocks(self, transformer: nn.Module) -> list[list[nn.Module]]:
        """Self-attention modules of every block, lowest first."""
        found = []
        for name in self.block_lists:
            for block in getattr(transformer, name):
                modules = [getattr(block, attention, None) for attention in self.attention]
                found.append([module for module in modules if module is not None])
        return found

    def call(self, transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Prediction of the teacher's type, (b, c or 2c, h, w)."""
        arguments = self.inputs(transformer, latents, timestep, condition)
        return self.output(transformer, transformer(**arguments, return_dict=False), latents)

    def count_image_tokens(self, transformer: Any, first_argument: Any) -> int | None:
        """Image tokens of a sample, or None where attention sees nothing else."""
        return self.image_tokens(transformer, first_argument) if self.text else None


_HEAD = ("norm_out.linear", "proj_out")
FAMILIES: dict[str, Family] = {
    "DiTTransformer2DModel": Family(
        ("transformer_blocks",), ("attn1",), ("proj_out_1", "proj_out_2"), pipeline="DiTPipeline"
    ),
    "PixArtTransformer2DModel": Family(
        ("transformer_blocks",), ("attn1",), ("proj_out",), _pixart, pipeline="PixArtSigmaPipeline"
    ),
    "HunyuanDiT2DModel": Family(
        ("blocks",), ("attn1",), _HEAD, _hunyuan, has_checkpointing=False, pipeline="HunyuanDiTPipeline"
    ),
    "WanTransformer3DModel": Family(("blocks",), ("attn1",), ("proj_out",), pipeline="WanPipeline"),
    "SD3Transformer2DModel": Family(
        ("transformer_blocks",), ("attn", "attn2"), _HEAD, text="last", pipeline="StableDiffusion3Pipeline"
    ),
    "ZImageTransformer2DModel": Family(
        ("layers",),
        ("attention",),
        ("all_final_layer.2-1.linear",),
        _z_image,
        _z_image_output,
        "last",
        _z_image_tokens,
        pipeline="ZImagePipeline",
    ),
    "FluxTransformer2DModel": Family(
        ("transformer_blocks", "single_transformer_blocks"),
        ("attn",),
        _HEAD,
        _flux,
        _flux_output,
        "first",
        _packed,
        pipeline="FluxPipeline",
    ),
    "Flux2Transformer2DModel": Family(
        ("transformer_blocks", "single_transformer_blocks"),
        ("attn",),
        _HEAD,
        _flux2,
        _flux2_output,
        "first",
        _packed,
        pipeline="Flux2Pipeline",
    ),
    "AuraFlowTransformer2DModel": Family(
        ("joint_transformer_blocks", "single_transformer_blocks"),
        ("attn",),
        _HEAD,
        _auraflow,
        text="first",
        pipeline="AuraFlowPipeline",
    ),
    "QwenImageTransformer2DModel": Family(
        ("transformer_blocks",), ("attn",), _HEAD, _qwen, _flux_output, "first", _packed, pipeline="QwenImagePipeline"
    ),
    "CogView4Transformer2DModel": Family(
        ("transformer_blocks",), ("attn1",), _HEAD, text="first", pipeline="CogView4Pipeline"
    ),
    "Lumina2Transformer2DModel": Family(
        ("layers",),
        ("attn",),
        ("norm_out.linear_1", "norm_out.linear_2"),
        _lumina2,
        _negated,
        "first",
        pipeline="Lumina2Pipeline",
    ),
}
"""Class name -> family. `register_family` adds to it."""


def register_family(class_name: str, family: Family) -> None:
    """Teach the package another transformer class.

    Args:
        class_name: Name of the class, as in its ``config.json``.
        family: Its row; `Family` says what each field means.

    Raises:
        ValueError: The class is known already.
    """
    if class_name in FAMILIES:
        raise ValueError(f"{class_name} is registered already")
    FAMILIES[class_name] = family


def family_of(transformer: nn.Module | str) -> Family:
    """The family of a transformer or of its class name.

    Raises:
        ValueError: No such family is known.
    """
    name = transformer if isinstance(transformer, str) else type(transformer).__name__
    if name not in FAMILIES:
        raise ValueError(
            f"unknown transformer class {name!r}; known: {', '.join(FAMILIES)}; add yours with register_family"
        )
    return FAMILIES[name]
