"""A teacher's transformer, scheduler and companions, loaded from a diffusers folder or an original DiT's file."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from ardistill.families import unfit_pipeline
from ardistill.files import weight_fingerprint
from ardistill.teacher.companions import Companions
from ardistill.teacher.experts import SECOND, boundary_of
from ardistill.teacher.loading import load_scheduler, load_transformer, transformer_fingerprint
from ardistill.teacher.original_dit import load_original_dit
from ardistill.teacher.source import Source


def load_pipeline(
    source: Source, weights: str = "float32", device: torch.device | str | None = None, in_parts: bool = False
) -> tuple[Any, Any, Companions | None]:
    """Load transformer and scheduler; companions are loaded when they are needed.

    Args:
        source: A diffusers folder, or an original DiT's ``.pt`` file, which has no companions.
        weights: Type of the weights, as ``load_transformer`` takes it.
        device: Where weights are quantised, as for ``load_transformer``.
        in_parts: Leave the weights of the transformer's blocks in their files, if these are safetensors.

    Raises:
        ValueError: It is neither, or the pipeline is not supported.
    """
    if _is_original_dit(source):
        if weights not in ("float32", "bfloat16"):
            raise ValueError(
                f"expected weights float32 or bfloat16 for {source.folder}, got {weights}; save it as a diffusers "
                "folder to quantise it"
            )
        transformer, scheduler = load_original_dit(source.folder)
        return transformer.to(getattr(torch, weights)), scheduler, None
    if not source.folder.is_dir():
        raise ValueError(
            f"expected a diffusers folder or an original DiT's .pt file, got {source.folder}; load it with "
            "from_single_file of its diffusers pipeline and name the folder that save_pretrained writes"
        )
    scheduler = load_scheduler(source)
    companions = Companions(source.folder, source.variant, torch.float32 if weights == "float32" else torch.bfloat16)
    companions.check()
    if reason := unfit_pipeline(companions.pipeline_class):
        raise ValueError(f"{source.name} is of {companions.pipeline_class}, which is not supported: {reason}")
    if boundary_of(companions, scheduler) is not None and weights not in ("float32", "bfloat16"):
        raise ValueError(f"{source.name} has two transformers: expected weights float32 or bfloat16, got {weights}")
    return load_transformer(source, weights, device, in_parts), scheduler, companions


def load_trainable(source: Source, part: str = "transformer") -> Any:
    """A teacher's transformer, or its second one, in float32, on the CPU, read from its files."""
    return load_original_dit(source.folder)[0] if _is_original_dit(source) else load_transformer(source, part=part)


def fingerprint_of(source: Source) -> str:
    """The fingerprint of the weights in a teacher's files, in float32."""
    if _is_original_dit(source):
        return weight_fingerprint(load_trainable(source).state_dict())
    first = transformer_fingerprint(source)
    if SECOND not in Companions(source.folder):
        return first
    return hashlib.sha256(f"{first} {transformer_fingerprint(source, SECOND)}".encode()).hexdigest()


def _is_original_dit(source: Source) -> bool:
    return source.folder.suffix == ".pt" and source.folder.is_file()
