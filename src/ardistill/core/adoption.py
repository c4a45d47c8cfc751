"""Make a transformer fit its pipeline: attach the student's history, and find the weights that are the student's own.

diffusers loads the weights that its class knows; the gates, heads and guidance of a student are read here, from the
same files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ardistill.core.attach import attach
from ardistill.core.config import EXPERTS, StudentConfig


def unwrapped(transformer: Any) -> Any:
    """The transformer inside the wrapper of torch.compile or PEFT, or itself."""
    transformer = getattr(transformer, "_orig_mod", transformer)
    return transformer.get_base_model() if hasattr(transformer, "get_base_model") else transformer


def folders_of(source: Any, component: str = "transformer") -> list[Path]:
    """Folders where the files of a model that was loaded from ``source`` may be."""
    if not source:
        return []
    folder = Path(source)
    if not folder.is_dir() and str(source).count("/") == 1:  # a Hub id
        with contextlib.suppress(OSError, ValueError):
            folder = Path(snapshot_download(str(source), allow_patterns=f"{component}/*.safetensors"))
    return [folder, folder / component]


def _beside(parts: Iterable[Any], component: str) -> list[Path]:
    """The transformer's folders beside other parts of a pipeline: those of the same snapshot of a Hub id."""
    names = {str(getattr(getattr(part, "config", None), "_name_or_path", "")) for part in parts}
    return [folder for name in sorted(names) if (folder := Path(name).parent / component).is_dir()]


def _read_weights(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """The tensors of these names that a folder has, in one file or in shards.

    Raises:
        ValueError: A file is damaged.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in names & {*file.keys()}} | found
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is cut or damaged ({error}); export or download it again") from error
    return found


def _is_of(transformer: Any, folder: Path) -> bool:
    """Whether a transformer's stock biases equal those in a folder, which may hold another revision of a Hub id."""
    biases = {
        name: x.detach()
        for name, x in transformer.named_parameters()
        if x.ndim == 1 and type(x) is nn.Parameter and x.is_floating_point() and not x.is_meta
    }
    there = _read_weights(folder, {*biases} - {*transformer.attachment.own_weights})
    return all(
        x.shape == biases[name].shape and torch.allclose(biases[name].cpu().float(), x.float(), rtol=0.01)
        for name, x in there.items()
    )


def _candidates(transformer: Any, others: Iterable[Any]) -> Iterator[Path]:
    """Folders that may hold a transformer's own weights.

    They are where the transformer was loaded from. A Hub id leaves the revision and the cache open: then the folder
    beside the ``others``, the other parts of its pipeline, comes first, and only a folder of the same revision counts.
    """
    source = str(transformer.config.get("_name_or_path") or "")
    component = EXPERTS[transformer.attachment.config.expert]
    if Path(source).is_dir():
        yield from folders_of(source, component)
    else:
        yield from (folder for folder in _beside(others, component) if _is_of(transformer, folder))
        yield from (folder for folder in folders_of(source, component) if _is_of(transformer, folder))


def _load_own_weights(transformer: nn.Module, names: list[str], others: Iterable[Any]) -> None:
    """Read these weights by their names, in the dtype and on the device of the transformer's parameters.

    Raises:
        ValueError: No folder has all of them, or a file is damaged.
    """
    parameters, tried = dict(transformer.named_parameters()), []
    for folder in _candidates(transformer, others):
        tried.append(str(folder))
        found = _read_weights(folder, {*names})
        if len(found) == len(names):
            for name, value in found.items():
                own = parameters[name]
                if own.shape != value.shape or own.is_meta:
                    shape = "not loaded (offloaded)" if own.is_meta else tuple(own.shape)
                    raise ValueError(
                        f"{folder}: {name} is {tuple(value.shape)}, in the transformer it is {shape}; load the "
                        "transformer of this export, without a device map, and enable offloading afterwards"
                    )
                own.data.copy_(value)
            return
    raise ValueError(
        f"expected the student's own weights ({names[0]}, ...; {len(names)} of them), found none in "
        f"{', '.join(tried) or 'any folder'}; take the transformer that the pipeline was loaded with, or load one from "
        "the export's folder or from where its save_pretrained (safetensors) wrote it"
    )


def adopt(transformer: Any, student: StudentConfig, expected: str, others: Iterable[Any]) -> None:
    """Make a transformer fit a pipeline: attach the history where it has none, and read the student's own weights.

    Args:
        transformer: The transformer, which is changed in place.
        student: Configuration of the pipeline's student.
        expected: Name of the transformer's class; any class if empty.
        others: The other parts of the pipeline.

    Raises:
        ValueError: The transformer is of another class or another student, or its own weights are not found.
    """
    module = unwrapped(transformer)
    name, is_module = type(module).__name__, isinstance(module, nn.Module)
    if not is_module or expected not in ("", name):
        raise ValueError(f"expected a transformer of class {expected or 'torch.nn.Module'}, got {name}")
    attached = getattr(module, "attachment", None)
    if attached is None:
        attached = attach(module, student)
        module.eval()
        if attached.own_weights:
            attached.is_complete = False
            _load_own_weights(module, attached.own_weights, others)
            attached.is_complete = True
    ours, theirs = (
        {key: x for key, x in asdict(config).items() if key not in ("teacher", "fingerprint", "sample_shapes")}
        for config in (student, attached.config)
    )
    if ours != theirs or not attached.is_complete:
        raise ValueError(
            "expected a transformer of this pipeline's own student, got one of another student or without its own "
            "weights; load it from this pipeline's folder, or draw with the other student's own pipeline"
        )
