"""The key layouts of original checkpoints, as tables: what diffusers calls each weight, and which weights are fused.

A table maps a name of the original layout to diffusers' name of the same module or tensor; ``*`` stands for the number
of a block. Names joined by ``+`` are fused: their rows are stacked, in this order. The tables of Flux, SD3 and Wan name
every weight, those of the others the linear layers of the blocks, which adapters stand beside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where the original layout has a module or tensor of diffusers."""

    name: str
    """Its name there."""
    part: int
    """Which of the fused parts it is, counted from 0; 0 if it stands alone."""


def _blocks(original: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    """A table with the names of a block under the block's own name, on both sides."""
    return {f"{original}.*.{x}": "+".join(f"{ours}.*.{part}" for part in y.split("+")) for x, y in names.items()}


@dataclass(frozen=True)
class KeyLayout:
    """The original layout of a transformer class."""

    table: Mapping[str, str]
    """Name of the original layout -> diffusers' name, or its fused names."""
    prefix: str = ""
    """What stands before every name in a checkpoint."""
    swapped: tuple[str, ...] = ()
    """diffusers' names of modules whose rows are (scale, shift) there and (shift, scale) in the original."""
    swapped_in_last_block: tuple[str, ...] = ()
    """The same for modules of the last block alone, whose names have a ``*`` for its number."""
    places: dict[str, Place] = field(init=False, repr=False)
    """diffusers' name -> its place."""

    def __post_init__(self) -> None:
        places = {
            ours: Place(original, part)
            for original, joined in self.table.items()
            for part, ours in enumerate(joined.split("+"))
        }
        object.__setattr__(self, "places", places)

    def find(self, name: str) -> Place:
        """The place of a module, or of a tensor by its module's place or its own.

        Raises:
            ValueError: The layout has no such weight.
        """
        pattern, number = _without_number(name)
        module, _, leaf = pattern.rpartition(".")
        if pattern in self.places:
            found = self.places[pattern]
        elif module in self.places:
            found = self.places[module]._replace(name=f"{self.places[module].name}.{leaf}")
        else:
            raise ValueError(
                f"the original layout of this transformer has no weight that diffusers calls {name}; export it in "
                "diffusers' layout, with form pipeline"
            )
        return found._replace(name=found.name.replace("*", number))

    def swap(self, name: str, value: Tensor, last_block: int) -> Tensor:
        """The rows of a tensor, or of an adapter's matrix B, in the order of the original layout.

        Args:
            name: diffusers' name of the tensor, or of the module.
            value: The tensor.
            last_block: Number of the last block of its list.
        """
        pattern, number = _without_number(name)
        modules = self.swapped_in_last_block if number == str(last_block) else ()
        if pattern.removesuffix(".weight").removesuffix(".bias") not in self.swapped + modules:
            return value
        return torch.cat(value.chunk(2)[::-1])

    def convert(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of a transformer, by diffusers' names, in the original layout.

        Raises:
            ValueError: The layout has no place for one of them.
        """
        last, fused = last_block(weights), dict[str, dict[int, Tensor]]()
        for name, value in weights.items():
            place = self.find(name)
            fused.setdefault(place.name, {})[place.part] = self.swap(name, value, last)
        joined = {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in fused.items()}
        return {self.prefix + name: value for name, value in joined.items()}


def _without_number(name: str) -> tuple[str, str]:
    """A name with ``*`` for the number of its block, and that number; the name itself and "" outside of blocks."""
    found = re.match(r"(\w+)\.(\d+)\.", name)
    return (f"{found[1]}.*.{name[found.end() :]}", found[2]) if found else (name, "")


def last_block(names: Iterable[str]) -> int:
    """The highest number of a block in the names of a transformer's weights; -1 if there is none."""
    return max((int(number) for name in names if (number := _without_number(name)[1])), default=-1)


_EMBEDDERS = {
    "timestep_embedder": "time_in", "text_embedder": "vector_in", "guidance_embedder": "guidance_in"
}  # fmt: skip
FLUX = KeyLayout(
    {
        f"{original}.{layer}": f"time_text_embed.{ours}.{linear}"
        for ours, original in _EMBEDDERS.items()
        for layer, linear in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
    }
    | {
        "txt_in": "context_embedder",
        "img_in": "x_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    | _blocks(
        "double_blocks",
        "transformer_blocks",
        {
            "img_mod.lin": "norm1.linear",
            "txt_mod.lin": "norm1_context.linear",
            "img_attn.qkv": "attn.to_q+attn.to_k+attn.to_v",
            "txt_attn.qkv": "attn.add_q_proj+attn.add_k_proj+attn.add_v_proj",
            "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
            "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
            "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
            "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
            "img_attn.proj": "attn.to_out.0",
            "txt_attn.proj": "attn.to_add_out",
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
        },
    )
    | _blocks(
        "single_blocks",
        "single_transformer_blocks",
        {
            "modulation.lin": "norm.linear",
            "linear1": "attn.to_q+attn.to_k+attn.to_v+proj_mlp",
            "linear2": "proj_out",
            "norm.query_norm.scale": "attn.norm_q.weight",
            "norm.key_norm.scale": "attn.norm_k.weight",
        },
    ),
    swapped=("norm_out.linear",),
)
SD3 = KeyLayout(
    {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    | _blocks(
        "joint_blocks",
        "transformer_blocks",
        {
            "x_block.adaLN_modulation.1": "norm1.linear",
            "context_block.adaLN_modulation.1": "norm1_context.linear",
            "x_block.attn.qkv": "attn.to_q+attn.to_k+attn.to_v",
            "context_block.attn.qkv": "attn.add_q_proj+attn.add_k_proj+attn.add_v_proj",
            "x_block.attn2.qkv": "attn2.to_q+attn2.to_k+attn2.to_v",
            "x_block.attn.ln_q": "attn.norm_q",
            "x_block.attn.ln_k": "attn.norm_k",
            "context_block.attn.ln_q": "attn.norm_added_q",
            "context_block.attn.ln_k": "attn.norm_added_k",
            "x_block.attn2.ln_q": "attn2.norm_q",
            "x_block.attn2.ln_k": "attn2.norm_k",
            "x_block.attn.proj": "attn.to_out.0",
            "context_block.attn.proj": "attn.to_add_out",
            "x_block.attn2.proj": "attn2.to_out.0",
            "x_block.mlp.fc1": "ff.net.0.proj",
            "x_block.mlp.fc2": "ff.net.2",
            "context_block.mlp.fc1": "ff_context.net.0.proj",
            "context_block.mlp.fc2": "ff_context.net.2",
        },
    ),
    prefix="model.diffusion_model.",
    swapped=("norm_out.linear",),
    swapped_in_last_block=("transformer_blocks.*.norm1_context.linear",),
)
_WAN_ATTENTION = {
    f"{original}.{layer}": f"{ours}.{linear}"
    for original, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for layer, linear in {
        "q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"
    }.items()
}  # fmt: skip
WAN = KeyLayout(
    {
        "patch_embedding": "patch_embedding",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "head.head": "proj_out",
        "head.modulation": "scale_shift_table",
    }
    | _blocks(
        "blocks",
        "blocks",
        _WAN_ATTENTION
        | {"norm3": "norm2", "modulation": "scale_shift_table", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"},
    ),
)
LUMINA2 = KeyLayout(
    _blocks(
        "layers",
        "layers",
        {
            "attention.qkv": "attn.to_q+attn.to_k+attn.to_v",
            "attention.out": "attn.to_out.0",
            "feed_forward.w1": "feed_forward.linear_1",
            "feed_forward.w2": "feed_forward.linear_2",
            "feed_forward.w3": "feed_forward.linear_3",
            "adaLN_modulation.1": "norm1.linear",
        },
    )
)
HUNYUAN_DIT = KeyLayout(
    _blocks(
        "blocks",
        "blocks",
        {
            "default_modulation.1": "norm1.linear",
            "attn1.Wqkv": "attn1.to_q+attn1.to_k+attn1.to_v",
            "attn1.out_proj": "attn1.to_out.0",
            "attn2.q_proj": "attn2.to_q",
            "attn2.kv_proj": "attn2.to_k+attn2.to_v",
            "attn2.out_proj": "attn2.to_out.0",
            "mlp.fc1": "ff.net.0.proj",
            "mlp.fc2": "ff.net.2",
            "skip_linear": "skip_linear",
        },
    )
)
