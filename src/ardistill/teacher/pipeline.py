"""A teacher's transformer, scheduler and companions, loaded from a diffusers folder or an original DiT's file."""

from __future__ import annotations

from typing import Any

from ardistill.teacher.companions import Companions
from ardistill.teacher.loading import load_scheduler, load_transformer
from ardistill.teacher.original_dit import load_original_dit
from ardistill.teacher.source import Source


def load_pipeline(source: Source, in_parts: bool = False) -> tuple[Any, Any, Companions | None]:
    """Load transformer and scheduler; companions are loaded when they are needed.

    Args:
        source: A diffusers folder, or an original DiT's ``.pt`` file, which has no companions.
        in_parts: Leave the weights of the transformer's blocks in their files, if these are safetensors.

    Raises:
        ValueError: It is neither, or the pipeline is not supported.
    """
    if source.folder.suffix == ".pt" and source.folder.is_file():
        return *load_original_dit(source.folder), None
    if not source.folder.is_dir():
        raise ValueError(
            f"expected a diffusers folder or an original DiT's .pt file, got {source.folder}; load it with "
            "from_single_file of its diffusers pipeline and name the folder that save_pretrained writes"
        )
    scheduler = load_scheduler(source)
    companions = Companions(source.folder, source.variant)
    companions.check()
    if "transformer_2" in companions:
        raise ValueError(f"{source.name} has a second transformer for a part of the path (as Wan 2.2): not supported")
    return load_transformer(source, in_parts), scheduler, companions
