"""Division of a student's weights over processes by torch's ``fully_shard`` (FSDP2), block by block."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ardistill.student import Student


def shard(student: Student, device: torch.device) -> None:
    """Replace the parameters by DTensors, each gathered only while its block runs. Every process has to call this.

    Args:
        student: Has the same weights on every process; changed in place. References to its earlier parameters become
            stale.
        device: Device of this process.
    """
    transformer, family = student.transformer, student.family
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name in family.block_lists:
        for i, block in enumerate(getattr(transformer, name)):
            # DiT's output layer also uses the first block's time embedding, after that block's weights are resharded:
            # the embedding is therefore sharded as a module of its own.
            for path, module in block.named_modules() if i == 0 else ():
                if path.endswith(".emb"):
                    fully_shard(module, mesh=mesh)
            fully_shard(block, mesh=mesh)
    # By default the outermost module would not reshard, and would keep weights gathered during validation, the EMA's.
    fully_shard(transformer, mesh=mesh, reshard_after_forward=True)
