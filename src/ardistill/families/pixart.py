"""PixArt-alpha and PixArt-Sigma (Chen et al. 2023, arXiv:2310.00426): text by cross-attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ardistill.families.encoding import Condition, encode_masked
from ardistill.families.family import Family, mask_condition
from ardistill.families.tokens import pixel_size


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: size and aspect ratio too if the checkpoint is conditioned on them."""
    extra: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:
        size = pixel_size(latents)
        extra = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    return {"hidden_states": latents, "timestep": timestep, "added_cond_kwargs": extra, **condition}


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=("proj_out",),
    inputs=_inputs,
    pipeline="PixArtSigmaPipeline",
    encode=encode_masked,
    example_extras=mask_condition,
)
