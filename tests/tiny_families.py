"""A tiny random instance of every family's real diffusers class, with latents and a condition that fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import original_dit  # noqa: F401  # registers its class
import torch
from torch import Tensor

from ardistill.families import transformer_class


@dataclass(frozen=True)
class Tiny:
    """What makes an instance; nothing is made before a test asks for it."""

    class_name: str
    options: dict[str, Any]
    latents: tuple[int, ...]
    condition: Callable[[int], dict[str, Tensor]]

    def transformer(self) -> Any:
        torch.manual_seed(0)
        model = transformer_class(self.class_name)(**self.options)
        for parameter in model.parameters():  # nothing hidden behind a zero gate
            torch.nn.init.normal_(parameter, std=0.15)
        return model.eval()


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _text(tokens: int, width: int, **more: Any) -> Callable[[int], dict[str, Tensor]]:
    return lambda count: (
        {"encoder_hidden_states": _normal(count, tokens, width)} | {name: make(count) for name, make in more.items()}
    )


def _ragged(count: int, tokens: int = 7) -> Tensor:
    lengths = torch.arange(count) % 3 + tokens - 2
    return torch.arange(tokens)[None] < lengths[:, None]


_SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
}  # fmt: skip
_LUMINA2 = {
    "sample_size": 8, "in_channels": 4, "hidden_size": 48, "num_layers": 3, "num_refiner_layers": 1,
    "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 16, "axes_dim_rope": (4, 4, 4),
    "axes_lens": (64, 16, 16), "cap_feat_dim": 12,
}  # fmt: skip
_SD3_TEXT = _text(5, 12, pooled_projections=lambda count: _normal(count, 10))

TINY = {
    "dit": Tiny(
        "DiTTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
         "sample_size": 8, "num_embeds_ada_norm": 5},
        (4, 8, 8),
        lambda count: {"class_labels": torch.arange(count) % 5},
    ),
    "dit-timm": Tiny("DiT", {}, (4, 8, 8), lambda count: {"class_labels": torch.arange(count) % 5}),
    "pixart-alpha": Tiny(
        "PixArtTransformer2DModel",
        {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 3, "cross_attention_dim": 24,
         "sample_size": 8, "caption_channels": 12, "use_additional_conditions": True},
        (4, 8, 8),
        _text(7, 12, encoder_attention_mask=_ragged),
    ),
    "pixart-sigma": Tiny(
        "PixArtTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "cross_attention_dim": 16,
         "sample_size": 8, "caption_channels": 12, "use_additional_conditions": False},
        (4, 8, 8),
        _text(7, 12, encoder_attention_mask=_ragged),
    ),
    "hunyuandit": Tiny(
        "HunyuanDiT2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "patch_size": 2, "sample_size": 8,
         "hidden_size": 32, "num_layers": 4, "cross_attention_dim": 16, "cross_attention_dim_t5": 16,
         "pooled_projection_dim": 8, "text_len": 5, "text_len_t5": 6},
        (4, 8, 8),
        _text(
            5, 16, text_embedding_mask=lambda count: _ragged(count, 5).long(),
            encoder_hidden_states_t5=lambda count: _normal(count, 6, 16),
            text_embedding_mask_t5=lambda count: _ragged(count, 6).long(),
        ),
    ),
    "wan": Tiny(
        "WanTransformer3DModel",
        {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
         "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3, "rope_max_seq_len": 32},
        (4, 2, 8, 8),
        _text(5, 12),
    ),
    "sd3": Tiny("SD3Transformer2DModel", _SD3, (4, 8, 8), _SD3_TEXT),
    "sd3.5": Tiny(
        "SD3Transformer2DModel", _SD3 | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}, (4, 8, 8), _SD3_TEXT
    ),
    "z-image": Tiny(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 12, "axes_dims": [4, 6, 6], "axes_lens": [64, 16, 16]},
        (4, 8, 8),
        _text(7, 12),
    ),
    "z-image-ragged": Tiny(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 12, "axes_dims": [4, 6, 6], "axes_lens": [128, 16, 16]},
        (4, 6, 6),
        _text(40, 12, encoder_attention_mask=lambda n: torch.arange(40)[None] < 20 + 15 * torch.arange(n)[:, None]),
    ),
    "flux": Tiny(
        "FluxTransformer2DModel",
        {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 10,
         "axes_dims_rope": (4, 6, 6), "guidance_embeds": True},
        (4, 8, 8),
        _text(5, 12, pooled_projections=lambda n: _normal(n, 10), guidance=lambda n: torch.full((n,), 3.5)),
    ),
    "flux2": Tiny(
        "Flux2Transformer2DModel",
        {"in_channels": 8, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 2, "joint_attention_dim": 12, "timestep_guidance_channels": 16,
         "axes_dims_rope": (4, 4, 4, 4)},
        (8, 4, 4),
        _text(5, 12, guidance=lambda count: torch.full((count,), 3.5)),
    ),
    "auraflow": Tiny(
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
         "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16,
         "pos_embed_max_size": 64},
        (4, 8, 8),
        _text(5, 12),
    ),
    "qwen-image": Tiny(
        "QwenImageTransformer2DModel",
        {"in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
         "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)},
        (4, 8, 8),
        _text(7, 16),
    ),
    "qwen-image-masked": Tiny(
        "QwenImageTransformer2DModel",
        {"in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
         "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)},
        (4, 8, 8),
        _text(7, 16, encoder_hidden_states_mask=lambda count: _ragged(count).long()),
    ),
    "cogview4": Tiny(
        "CogView4Transformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2,
         "text_embed_dim": 12, "time_embed_dim": 8, "condition_dim": 4, "sample_size": 8, "rope_axes_dim": (16, 16)},
        (4, 8, 8),
        _text(5, 12),
    ),
    "lumina2": Tiny(
        "Lumina2Transformer2DModel",
        _LUMINA2,
        (4, 8, 8),
        _text(5, 12, encoder_attention_mask=lambda count: torch.ones(count, 5, dtype=torch.bool)),
    ),
    "lumina2-ragged": Tiny(
        "Lumina2Transformer2DModel", _LUMINA2, (4, 8, 8), _text(5, 12, encoder_attention_mask=lambda n: _ragged(n, 5))
    ),
}  # fmt: skip
"""Name of a test -> instance."""


GATE = 0.5
"""What ``open_gates`` sets: closed, as they start, gates would hide a wrong history from every test."""


def open_gates(student):
    """Let a new student with gates see its history."""
    for name, parameter in student.named_parameters():
        if name.endswith("history_gate"):
            torch.nn.init.constant_(parameter, GATE)
