"""Sana (Xie et al. 2024, arXiv:2410.10629): linear self-attention, text by cross-attention, flow matching."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ardistill.core.binding import bypassed
from ardistill.core.history import _NOW, _TRACED
from ardistill.families.encoding import Condition, encode_masked, encode_prompt
from ardistill.families.family import Family, mask_condition
from ardistill.families.grids import scheduler_grid


def multiply(first: Tensor, second: Tensor) -> Tensor:
    """Stand in for ``torch.matmul`` in linear attention with history, which calls it twice.

    The first product sums values times keys over the tokens of a step and, in its last row, the keys: these sums are
    the history of a step. The second one is that of the sums and the queries; what is returned has the earlier steps
    in it. The processor then divides by the last row.
    """
    call = (_TRACED if torch.compiler.is_compiling() else _NOW).block
    if call is None:
        raise bypassed("another")
    product = torch.matmul(first, second)
    if not call.made or call.made[-1][0] is not first:
        if len(call.made) == len(call.modules):
            raise bypassed("another")
        call.made.append((product, product))
        return product
    index, layout = len(call.made) - 1, call.layout
    gate, earlier = call.modules[index].history_gate, call.earlier[index] if call.earlier else []
    call.made[index] = first[:, :, :-1], first[:, :, -1:]
    if layout.folded is not None:
        sums = layout.folded(first, call.history.mask)
    elif earlier:
        sums = torch.cat([sum(x[1:], x[0]) for x in zip(*earlier, strict=True)], dim=2)
    else:
        return product
    past = torch.matmul(sums, second)
    if gate is None:
        return product + past
    wide = torch.promote_types(product.dtype, torch.float32)  # 1e-15 is 0 in float16
    own, seen = ((x[:, :, :-1] / (x[:, :, -1:] + 1e-15)).to(product) for x in (product.to(wide), past.to(wide)))
    return torch.cat([own + gate.to(own) * seen, torch.ones_like(product[:, :, -1:])], dim=2)


def _inputs(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of the transformer's forward; some checkpoints scale the time."""
    return {"hidden_states": latents, "timestep": timestep * transformer.config.timestep_scale, **condition}


def _encode(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings and mask of each prompt, behind the instruction that the pipeline's call gives its text encoder."""
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    embeddings, mask = encode_prompt(pipeline, prompts, complex_human_instruction=instruction)[:2]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=("proj_out",),
    linear=("SanaLinearAttnProcessor2_0.__call__", multiply),
    keeps_float32=True,
    inputs=_inputs,
    pipeline="SanaPipeline",
    encode=_encode,
    encode_negative=encode_masked,
    example_extras=mask_condition,
    grid=scheduler_grid,
)
