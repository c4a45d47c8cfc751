"""AuraFlow (fal 2024): joint attention, then single blocks, text before the image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ardistill.families.encoding import Condition, encode_plain
from ardistill.families.family import HEAD, Family
from ardistill.families.grids import scheduler_grid


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: timesteps in [0, 1]."""
    return {"hidden_states": latents, "timestep": timestep / 1000, **condition}


FAMILY = Family(
    block_lists=("joint_transformer_blocks", "single_transformer_blocks"),
    attention=("attn",),
    head=HEAD,
    text="first",
    time_embedding="time_step_proj",
    inputs=_inputs,
    pipeline="AuraFlowPipeline",
    encode=encode_plain,
    grid=scheduler_grid,
)
