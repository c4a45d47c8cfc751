"""Which of several sets of weights in one folder to load: the variants of diffusers, such as ``fp16``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<older>\w+))?"
    r"\.(?:safetensors|bin)"
)
"""Names of weight files as diffusers and transformers write them, ``model.fp16-00001-of-00002.safetensors``, and as
older versions did, ``model-00001-of-00002.fp16.safetensors``."""


def find_variants(files: Iterable[str]) -> set[str]:
    """Variants of the weight files among these names; the empty string stands for weights without a variant."""
    matches = [found for name in files if (found := _WEIGHTS.fullmatch(name))]
    return {found["variant"] or found["older"] or "" for found in matches}


def only_variant(files: Iterable[str], where: Any, wanted: str | None = None) -> str | None:
    """Choose the variant to load: the wanted one if present, else weights without a variant, else the only variant.

    Args:
        files: Names of the files in one folder.
        where: The folder, for the message.
        wanted: The variant that was asked for.

    Returns:
        The variant; None for weights without one.

    Raises:
        ValueError: There are several variants, none of them the wanted one, and no weights without a variant.
    """
    found = find_variants(files)
    if wanted in found:
        return wanted
    if "" in found or not found:
        return None
    if len(found) > 1 or wanted:
        names = ", ".join(sorted(found))
        raise ValueError(f"{where} has weights of the variants {names} alone{f', not {wanted}' if wanted else ''}; "
                         f"name one of them behind the teacher's name, as NAME:{min(found)}")  # fmt: skip
    return found.pop()


def weight_options(folder: Path, wanted: str | None = None) -> dict[str, Any]:
    """Options of ``from_pretrained`` that choose the weights of a component: their variant and file format.

    Args:
        folder: The component's folder.
        wanted: Variant to load; the only one present if not given.

    Raises:
        ValueError: `only_variant` finds none to load.
    """
    variant = only_variant([x.name for x in folder.iterdir()], folder, wanted)
    ours = weight_files(folder, variant)
    return {"variant": variant} | ({"use_safetensors": any(x.suffix == ".safetensors" for x in ours)} if ours else {})


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files of a component's weights of one variant, safetensors and pickled ones, by name."""
    return sorted(x for x in folder.iterdir() if find_variants([x.name]) == {variant or ""})
