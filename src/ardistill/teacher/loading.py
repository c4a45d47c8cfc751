"""A teacher's transformer and scheduler, read from a diffusers folder by diffusers' own loaders."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights

from ardistill.devices import resolve_device
from ardistill.families import transformer_class
from ardistill.files import stored_fingerprint
from ardistill.teacher.schedule import check_scheduler
from ardistill.teacher.source import Source
from ardistill.teacher.unread import leave_unread
from ardistill.teacher.variants import weight_files, weight_options

_LOG = logging.getLogger(__name__)


def read_config(path: Path) -> Any:
    """The content of a JSON file of a pipeline; None if there is no such file.

    Raises:
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); save or download the pipeline again") from error


def _read_class_config(path: Path, name: str | Path) -> dict[str, Any]:
    """Read the configuration of a transformer or scheduler, which names its class."""
    found = read_config(path)
    if not isinstance(found, dict) or "_class_name" not in found:
        raise ValueError(
            f"{name}: expected subfolders transformer and scheduler of a diffusers pipeline, found no {path}"
        )
    return found


def read_transformer_config(folder: Path, name: str | Path, part: str = "transformer") -> dict[str, Any]:
    """Read the transformer's configuration from a pipeline's folder.

    Args:
        folder: The pipeline's folder.
        name: Name of the teacher, for the message.
        part: Its subfolder.

    Raises:
        ValueError: The folder has none.
    """
    return _read_class_config(folder / part / "config.json", name)


def load_transformer(
    source: Source,
    weights: str = "float32",
    device: torch.device | str | None = None,
    in_parts: bool = False,
    part: str = "transformer",
) -> Any:
    """Load the teacher's transformer, whatever type its weights are stored in.

    Args:
        source: Where the teacher is.
        weights: ``float32``, ``bfloat16``, ``int8`` or ``nf4``; none but the first is reached through float32.
        device: Where weights are quantised to ``nf4``, the best GPU if not given; all others are loaded on the CPU.
        in_parts: Leave the weights of the blocks in their files, if these are safetensors.
        part: Its subfolder.

    Raises:
        ValueError: Its class is unknown, its weights are quantised or missing, or there are several variants of them.
    """
    config = read_transformer_config(source.folder, source.name, part)
    found = transformer_class(config)
    if config.get("quantization_config"):  # fewer values than the teacher's: it would be another teacher
        kind = config["quantization_config"].get("quant_method", "")
        raise ValueError(
            f"{source.name}: its weights are quantised ({kind}); name the model that they were made from, and quantise "
            "it with weights int8 or nf4"
        )
    folder = source.folder / part
    options = weight_options(folder, source.variant)
    if source.variant and options["variant"] != source.variant:
        raise ValueError(
            f"{folder} has no weights of the variant {source.variant}, but of no variant; leave :{source.variant} out"
        )
    if options["variant"] and not source.variant:
        _LOG.warning("%s has weights of the variant %s alone; they are loaded", folder, options["variant"])
    if in_parts and weights in ("float32", "bfloat16"):
        unread = leave_unread(found, config, weight_files(folder, options["variant"]), getattr(torch, weights))
        if unread is not None:
            unread.register_to_config(_name_or_path=str(source.folder))
            return unread
    try:
        options |= _type_options(weights, device)
        return found.from_pretrained(source.folder, subfolder=part, **options)
    except OSError as error:
        raise ValueError(
            f"{folder}: its weights cannot be loaded ({' '.join(str(error).split())}); download or save it again"
        ) from error


def _type_options(weights: str, device: torch.device | str | None) -> dict[str, Any]:
    """Options of ``from_pretrained`` that load weights in a type."""
    if weights == "float32":
        return {"torch_dtype": torch.float32}
    options: dict[str, Any] = {"torch_dtype": torch.bfloat16}
    if weights == "int8":
        kind = importlib.import_module("torchao.quantization").Int8WeightOnlyConfig()
        options["quantization_config"] = diffusers.TorchAoConfig(kind)
    if weights == "nf4":
        options["quantization_config"] = diffusers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        options["device_map"] = {"": str(resolve_device(device))}
    return options


def transformer_fingerprint(source: Source, part: str = "transformer") -> str:
    """The fingerprint of a teacher's weights in a diffusers folder, read from its files: the same whatever type they
    are loaded in.
    """
    config = read_transformer_config(source.folder, source.name, part)
    with init_empty_weights():
        state = transformer_class(config).from_config(config).state_dict()
    folder = source.folder / part
    files = weight_files(folder, weight_options(folder, source.variant)["variant"])
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    return stored_fingerprint(files, shapes, lambda: load_transformer(source, part=part).state_dict())


def load_scheduler(source: Source) -> Any:
    """Load the teacher's scheduler.

    Raises:
        ValueError: There is none, diffusers has no such class, or `check_scheduler` refuses it.
    """
    path = source.folder / "scheduler" / "scheduler_config.json"
    config = _read_class_config(path, source.name)
    scheduler_class = getattr(diffusers, str(config["_class_name"]), None)
    if scheduler_class is None:
        raise ValueError(f"{source.name}: unknown scheduler {config['_class_name']!r}; diffusers has none such")
    try:
        scheduler = scheduler_class.from_config(config)
        check_scheduler(scheduler)
    except Exception as error:  # diffusers raises many kinds: options that conflict, packages that are missing
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if "clip_sample" in inspect.signature(scheduler_class.__init__).parameters and scheduler.config.get("clip_sample"):
        _LOG.warning(
            "%s: clip_sample is not followed, the teacher's ODE is solved without clipping; set it to false", path
        )
    return scheduler
