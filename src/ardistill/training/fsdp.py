"""Division of a transformer's weights over processes by torch's ``fully_shard`` (FSDP2), block by block."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ardistill.student import Student
from ardistill.teacher import Teacher, unread_files


def shard(student: Student, device: torch.device) -> None:
    """Replace the parameters by DTensors, each gathered only while its block runs. Every process has to call this.

    Args:
        student: Has the same weights on every process, or has them in its teacher's files still, of which each process
            then reads its part; changed in place. References to its earlier parameters become stale. A student that is
            divided already stays as it is.
        device: Device of this process.
    """
    if not isinstance(student.transformer, FSDPModule):
        _divide(student.transformer, student.family.block_lists, device)


@contextmanager
def divided(teacher: Teacher, device: torch.device) -> Iterator[None]:
    """Context in which a teacher computes with weights that are divided over the processes, on their devices.

    After it the teacher is as before: its weights are in their files if it was loaded ``in_parts``. Every process has
    to enter it, and to compute alike.

    Args:
        teacher: Its transformer is another one within the context.
        device: Device of this process.
    """
    unread = teacher.transformer
    teacher.transformer = copy.deepcopy(unread)
    try:
        _divide(teacher.transformer, teacher.family.block_lists, device)
        yield
    finally:
        teacher.transformer = unread
        gc.collect()  # FSDP's parts refer to each other


def _divide(transformer: Any, block_lists: Sequence[str], device: torch.device) -> None:
    """Divide a transformer, and read this process's parts of what is in its files still."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name in block_lists:
        for i, block in enumerate(getattr(transformer, name)):
            # DiT's output layer also uses the first block's time embedding, after that block's weights are resharded:
            # the embedding is therefore sharded as a module of its own.
            for path, module in block.named_modules() if i == 0 else ():
                if path.endswith(".emb"):
                    fully_shard(module, mesh=mesh)
            fully_shard(block, mesh=mesh)
    # By default the outermost module would not reshard, and would keep weights gathered during validation, the EMA's.
    fully_shard(transformer, mesh=mesh, reshard_after_forward=True)
    _read_parts(transformer, device)


@torch.no_grad()
def _read_parts(transformer: Any, device: torch.device) -> None:
    """Give parameters on the meta device their memory on this one, and their values.

    They are in the files under the names that they had before adapters were put beside them. What a student has in its
    blocks beyond that, gates and an embedding of the guidance, starts at zero.
    """
    missing = {name for name, parameter in transformer.named_parameters() if parameter.is_meta}
    if not missing:
        return
    transformer._apply(lambda x: torch.empty_like(x, device=device) if x.is_meta else x)
    files, parameters = unread_files(transformer), dict(transformer.named_parameters())
    assert files is not None
    for name in missing:
        stored = name.replace(".base_layer.", ".")
        if stored in files:
            files.fill(stored, parameters[name])
        else:
            parameters[name].zero_()
