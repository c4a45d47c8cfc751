"""Low-rank adapters (PEFT) beside the teacher's own weights, which a student then shares instead of copying them.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def check_trainable(weights: str, rank: int) -> None:
    """Refuse to train all weights of a quantised teacher.

    Args:
        weights: Type of the teacher's weights.
        rank: Rank of the adapters; 0 without.

    Raises:
        ValueError: They are quantised, and there are no adapters.
    """
    if weights in ("int8", "nf4") and not rank:
        raise ValueError(
            f"expected weights float32 or bfloat16 to train all of them, got {weights}, which cannot be trained; train "
            "adapters beside them with lora_rank, or choose weights bfloat16"
        )


def share_weights(transformer: Any) -> Any:
    """A second transformer on the same parameters and buffers, which takes no memory; changes of its modules do not
    affect the first one.
    """
    held = [*transformer.parameters(), *transformer.buffers()]
    return copy.deepcopy(transformer, {id(tensor): tensor for tensor in held})


def in_float32(weight: Tensor) -> Tensor:
    """A weight of a base under adapters in float32, with the values that it computes with if it is quantised."""
    if hasattr(weight, "quant_state"):
        dequantize = importlib.import_module("bitsandbytes.functional").dequantize_4bit
        weight = dequantize(weight.data, weight.quant_state)
    elif type(weight).__module__.startswith("torchao."):
        weight = weight.dequantize()
    return weight.float() if weight.is_floating_point() else weight


def add_adapters(transformer: Any, base: Iterable[nn.Parameter], block_lists: Sequence[str], rank: int) -> None:
    """Put adapters on every linear layer of the blocks; train them and every parameter that is not in ``base``.

    A layer gives W x + B A x, unscaled; B starts at zero. What is trained is float32, whatever type the base has. PEFT
    is used directly, as DiT, PixArt and HunyuanDiT have no adapters in diffusers.

    Args:
        transformer: The transformer, which is changed in place.
        base: Parameters to freeze.
        block_lists: Attributes of the transformer that hold the blocks.
        rank: Rank of the matrices A and B.

    Raises:
        ValueError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
        from peft.tuners.lora.layer import Linear

        from ardistill.student.lora_linear import LoraLinear
    except ImportError as error:
        raise ValueError("lora_rank needs PEFT: pip install 'ardistill[lora]'") from error
    targets = [
        f"{blocks}.{name}"
        for blocks in block_lists
        for name, module in getattr(transformer, blocks).named_modules()
        if isinstance(module, nn.Linear)
    ]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    inject_adapter_in_model(config, transformer, low_cpu_mem_usage=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same in every process, and when the same command resumes
        for layer in transformer.modules():  # filled here: PEFT would move them to another device
            if isinstance(layer, LoraLayer):
                own: Any = layer  # PEFT's types do not name the attributes that it sets
                for linear in (own.lora_A["default"], own.lora_B["default"]):
                    base_weight = own.get_base_layer().weight
                    where = "cpu" if base_weight.is_meta else base_weight.device
                    empty = torch.empty_like(linear.weight, device=where, dtype=torch.float32)
                    linear.weight = nn.Parameter(empty)
                layer.reset_lora_parameters("default", True)
                if type(layer) is Linear:  # not a quantised one, of which there are several classes
                    own.__class__ = LoraLinear
    frozen = {id(parameter) for parameter in base}
    for parameter in transformer.parameters():
        if id(parameter) not in frozen:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(id(parameter) not in frozen)


@torch.no_grad()
def merge_adapters(transformer: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Add the products of adapters to the weights that they stand beside, and put in the other trained weights.

    Args:
        transformer: One without adapters, changed in place; PEFT is not needed.
        weights: Trained weights by their names in a transformer with adapters.

    Raises:
        ValueError: The transformer lacks a weight.
    """
    held = transformer.state_dict()
    for name, value in weights.items():
        plain = name.replace(".lora_A.default", "")
        if ".lora_B." in name:
            continue
        if plain not in held:
            raise ValueError(f"expected adapters of this transformer, which has no {plain}; name those of its student")
        if plain == name:
            held[name].copy_(value)
        else:
            b = weights[name.replace(".lora_A.", ".lora_B.")]
            held[plain].add_((b.float() @ value.float()).to(held[plain]))
