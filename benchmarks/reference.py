"""The authors' model (github alsdudrla10/ARD, not part of this repository) with the weights of one of our students."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from ardistill.core.knots import Knots
from ardistill.student import Student, StudentConfig
from ardistill.teacher.original_dit import convert_weights

NUM_CLASSES = 1000
HEADS = ("final_layer", "final_layer2", "final_layer3", "final_layer4")


def load_reference(folder: str | Path, hidden_size: int, depth: int, num_heads: int) -> Any:
    """Their ``models_ARD.DiT``, randomly initialised everywhere; needs timm.

    Raises:
        ValueError: ``folder`` is no checkout of their repository.
    """
    if not (Path(folder) / "models_ARD.py").is_file():
        raise ValueError(f"expected a checkout of alsdudrla10/ARD (models_ARD.py) in {folder}")
    sys.path.insert(0, str(folder))
    import models_ARD

    model = models_ARD.DiT(hidden_size=hidden_size, depth=depth, num_heads=num_heads, num_classes=NUM_CLASSES)
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(parameter, std=0.03)
    return model.eval()


def make_student(reference: Any, hidden_size: int, depth: int, num_heads: int, history_layers: int) -> Student:
    """Our student with the same weights, ``denoised`` and ``direct``, at their conditioning times."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=num_heads,
        attention_head_dim=hidden_size // num_heads,
        in_channels=4,
        out_channels=8,
        num_layers=depth,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=NUM_CLASSES,
        norm_eps=1e-6,
    )
    theirs = reference.state_dict()
    ours = convert_weights(theirs)
    transformer.pos_embed.pos_embed.copy_(theirs["pos_embed"])

    for block in transformer.transformer_blocks:
        # diffusers spaces the frequencies of DiT's time embedding by 1/127, the original by 1/128.
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    times = tuple(999.0 * x for x in (1, 3 / 4, 2 / 4, 1 / 4))
    alpha = DDIMScheduler().alphas_cumprod[[999, 599, 399, 199]].sqrt().tolist()  # recorded at 25, 15, 10, 5 of 25
    knots = Knots("epsilon", times, (*alpha, 1.0), (*((1 - a * a) ** 0.5 for a in alpha), 0.0))
    student = Student(transformer, StudentConfig(knots, history_layers, "M4", "denoised", "direct", gated=False))
    for name, part in (("proj_out_1", "adaLN_modulation.1"), ("proj_out_2", "linear")):
        for kind in ("weight", "bias"):
            per_step = [theirs[f"{head}.{part}.{kind}"] for head in HEADS]
            ours[f"{name}.{kind}"] = per_step[0]
            ours[f"{name}.later_{kind}"] = torch.stack(per_step[1:])
    missing, unexpected = transformer.load_state_dict(ours, strict=False)
    if unexpected or missing:
        raise RuntimeError(f"weights do not match: missing {missing}, unexpected {unexpected}")
    return student.eval()
