"""PRX (Photoroom 2025): queries of the image alone, keys of text before those of the image; text stays as it came."""

from __future__ import annotations

from typing import Any

from diffusers.utils import is_ftfy_available
from torch import Tensor

from ardistill.families.encoding import Condition, encode_prompt
from ardistill.families.family import Family, mask_condition
from ardistill.families.grids import scheduler_grid


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward: timesteps in [0, 1]."""
    return {
        "hidden_states": latents,
        "timestep": timestep / 1000,
        "encoder_hidden_states": condition["encoder_hidden_states"],
        "attention_mask": condition["encoder_attention_mask"],
    }


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings and a mask of the tokens that count.

    Raises:
        ValueError: ftfy is not installed.
    """
    if not is_ftfy_available():
        raise ValueError("diffusers' PRXPipeline cleans prompts with ftfy: pip install 'ardistill[text]'")
    embeddings, mask = encode_prompt(pipeline, prompts)[:2]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


FAMILY = Family(
    block_lists=("blocks",),
    attention=("attention",),
    head=("final_layer.adaLN_modulation.1", "final_layer.linear"),
    text="first",
    time_embedding="time_in",
    inputs=_inputs,
    pipeline="PRXPipeline",
    encode=_encode,
    example_extras=mask_condition,
    grid=scheduler_grid,
    default_size=64,
)
