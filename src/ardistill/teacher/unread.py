"""A transformer whose blocks are left in their files, for a run in which each process reads its part of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers.models.modeling_utils import no_init_weights

from ardistill.families import family_of
from ardistill.files import TensorFiles


def leave_unread(made_by: Any, config: dict[str, Any], paths: Sequence[Path], dtype: torch.dtype) -> Any | None:
    """Make a transformer whose blocks' weights are on the meta device, and read everything else of it.

    Args:
        made_by: Its diffusers class.
        config: Its configuration.
        paths: The files of its weights.
        dtype: Type of the weights, but for those that the class keeps in float32.

    Returns:
        The transformer, with its files as its attribute ``weight_files``; None if it has to be read whole, because its
        files are no safetensors or do not hold exactly its weights.
    """
    if any(path.suffix != ".safetensors" for path in paths):
        return None
    files = TensorFiles(paths)
    with no_init_weights(), init_empty_weights():
        made = made_by.from_config(config)
    weights = made.state_dict()
    if files.shapes != {name: tuple(x.shape) for name, x in weights.items()}:
        return None
    blocks = tuple(f"{name}." for name in family_of(made).block_lists)
    kept = {*(made_by._keep_in_fp32_modules or ())}
    for name, x in weights.items():
        x = x.to(torch.float32 if kept & {*name.split(".")} else dtype) if x.is_floating_point() else x
        if not (x.is_meta and name.startswith(blocks)):
            x = torch.empty_like(x, device="cpu").copy_(files[name])
        set_module_tensor_to_device(made, name, x.device, x, x.dtype)
    made.weight_files = files
    return made


def unread_files(transformer: Any) -> TensorFiles | None:
    """The files of a transformer that `leave_unread` made; None of one that was read whole."""
    return getattr(transformer, "weight_files", None)


def move(transformer: Any, device: torch.device | str) -> None:
    """Move a transformer to a device, unless it is unread: its parts come to their devices when they are read."""
    if unread_files(transformer) is None:
        transformer.to(device)
