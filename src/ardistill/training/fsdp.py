"""A student's weights divided over the processes: torch's ``fully_shard`` (FSDP2), block by block."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ardistill.student import Student


def shard(student: Student, device: torch.device) -> None:
    """Make the parameters DTensors, whole on no process but while their block runs. Called by every process at once.

    Args:
        student: Of equal weights on every process; changed in place. Parameters have to be asked for anew.
        device: Where they go.
    """
    transformer, family = student.transformer, student.family
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name in family.block_lists:
        for i, block in enumerate(getattr(transformer, name)):
            # The DiT's first block embeds the time for the output layer, too: called when its block is divided again.
            for path, module in block.named_modules() if i == 0 else ():
                if path.endswith(".emb"):
                    fully_shard(module, mesh=mesh)
            fully_shard(block, mesh=mesh)
    # Not as by default for the outermost: it would keep what it gathered for a validation, of the EMA, as weights.
    fully_shard(transformer, mesh=mesh, reshard_after_forward=True)
