"""Where a teacher lies and how its parts are loaded: by diffusers' and transformers' own loaders, in every command."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import HfApi, snapshot_download
from torch import nn

from ardistill.families import transformer_class
from ardistill.teacher.schedule import check_scheduler
from ardistill.zoo import FOLDERS

logger = logging.getLogger(__name__)
ZOO = {f"zoo/{name}": folder / "teacher" for name, folder in FOLDERS.items()}
"""Name of an embedded teacher -> its folder."""
_HUB_NAME = re.compile(r"(?P<base>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@:\s]+))?(?::(?P<variant>\w+))?")
_PATH_NAME = re.compile(r"(?P<base>.+?)(?P<revision>)(?::(?P<variant>\w+))?")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<older>\w+))?"
    r"\.(?:safetensors|bin)"
)
"""Names of weight files as diffusers and transformers write them: ``model.fp16-00001-of-00002.safetensors``; before,
``model-00001-of-00002.fp16.safetensors``."""
ELSEWHERE = "say where the teacher is now with --teacher"
"""What to do where a name, given or recorded, leads nowhere."""


@dataclass(frozen=True)
class Source:
    """Where a teacher was found."""

    name: str
    """What finds it again from any folder: an absolute path, or a Hub id or a zoo name as it was given."""
    folder: Path
    """The diffusers folder on this machine, or a file."""
    variant: str | None = None
    """Which set of weights was asked for by name, such as ``fp16``; None: the only one there is."""


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """Path or Hub id, revision and variant of a name such as ``org/model@main:fp16``.

    A name under which something lies on this machine is a path, as a whole or up to its ``:VARIANT``.
    """
    hub, path = _HUB_NAME.fullmatch(name), _PATH_NAME.fullmatch(name)
    if path is None or local_path(name).exists():
        return name, None, None
    found = path if hub is None or local_path(path["base"]).exists() else hub
    return found["base"], found["revision"] or None, found["variant"]


def local_path(name: str | Path) -> Path:
    """The absolute path that a name stands for, links kept.

    Raises:
        ValueError: It begins with ``~`` and the name of a user whom this machine does not know.
    """
    try:
        return Path(os.path.abspath(Path(name).expanduser()))
    except RuntimeError as error:
        raise ValueError(
            f"{str(name)!r} names the home of a user whom this machine does not know; write it out"
        ) from error


def find(name: str | Path, parts: Iterable[str] | None = None, remedy: str = ELSEWHERE) -> Source:
    """Find a teacher on this machine, or download it from the Hub.

    Args:
        name: A zoo name, a folder or a file, or a Hub id; a Hub id may be followed by ``@REVISION``, and it or a folder
            by ``:VARIANT``.
        parts: Files to download of a Hub id, as patterns; all of the pipeline if not given.
        remedy: What to do if nothing is there, for the message.

    Raises:
        ValueError: Nothing is there; the message says where was looked and what to do.
    """
    name = str(name)
    if name in ZOO:
        return Source(name, ZOO[name])
    if name.startswith("zoo/") and not local_path(name).exists():
        raise ValueError(f"expected a teacher of the zoo, {', '.join(ZOO)}, got {name}")
    base, revision, variant = split_name(name)
    path = local_path(base)
    if path.exists():
        if revision:
            raise ValueError(f"{path} is a folder of this machine, which has no revision {revision!r}; leave it out")
        return Source(f"{path}:{variant}" if variant else str(path), path, variant)
    if Path(base).is_absolute() or base.startswith((".", "~")) or base.count("/") != 1:
        raise ValueError(
            "expected a diffusers folder or the id of a model on the Hub, such as facebook/DiT-XL-2-256, found nothing "
            f"at {path}; {remedy}"
        )
    try:
        return Source(name, Path(_download(base, revision, variant, parts)), variant)
    except Exception as error:  # whatever the network or the Hub answers
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"found no folder {path}, and could not load {base} from the Hub ({reason}); check the spelling, "
            f"the network and your access (hf auth login), or {remedy}"
        ) from error


def _download(repo: str, revision: str | None, variant: str | None, parts: Iterable[str] | None) -> str | Path:
    if parts is not None:
        return snapshot_download(repo, revision=revision, allow_patterns=[*parts])
    if variant is None:
        try:
            files = HfApi().list_repo_files(repo, revision=revision)
        except Exception:  # offline: what is in the cache is looked at once it is found
            files = []
        variant = _only_variant([x.removeprefix("transformer/") for x in files], f"{repo}, transformer")
    return diffusers.DiffusionPipeline.download(repo, revision=revision, variant=variant)


def _variants(files: Iterable[str]) -> set[str]:
    """Variants of the weight files among these names; the empty string stands for weights of no variant."""
    matches = [found for name in files if (found := _WEIGHTS.fullmatch(name))]
    return {found["variant"] or found["older"] or "" for found in matches}


def _only_variant(files: Iterable[str], where: Any, wanted: str | None = None) -> str | None:
    """The variant to load: the wanted one if it is there, else none if weights of no variant are there, else the only
    one.

    Raises:
        ValueError: There are several and none was named.
    """
    found = _variants(files)
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
    """How ``from_pretrained`` is told which weights of a part to load: their variant, and whether they are safetensors.

    Args:
        folder: Of the part.
        wanted: Variant to load; the only one there is if not given.

    Raises:
        ValueError: There are several variants and none was named, or not the wanted one.
    """
    files = [x.name for x in folder.iterdir()]
    variant = _only_variant(files, folder, wanted)
    ours = [x for x in files if _variants([x]) == {variant or ""}]
    return {"variant": variant} | ({"use_safetensors": any(x.endswith(".safetensors") for x in ours)} if ours else {})


def _read(path: Path) -> Any:
    """What a JSON file of a pipeline holds; None if it is not there."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); save or download the pipeline again") from error


def read_transformer_config(folder: Path, name: str | Path) -> dict[str, Any]:
    """The transformer's configuration in a pipeline's folder.

    Raises:
        ValueError: There is none.
    """
    path = folder / "transformer" / "config.json"
    found = _read(path)
    if not isinstance(found, dict) or "_class_name" not in found:
        raise ValueError(
            f"{name}: expected subfolders transformer and scheduler of a diffusers pipeline, found no {path}"
        )
    return found


def load_transformer(source: Source) -> Any:
    """The teacher's transformer, in float32 whatever its weights are stored in: the ODE is solved in it.

    Raises:
        ValueError: Its class is not known, or its weights are quantised, of several variants or not there.
    """
    config = read_transformer_config(source.folder, source.name)
    found = transformer_class(config)
    if config.get("quantization_config"):
        kind = config["quantization_config"].get("quant_method", "")
        raise ValueError(f"{source.name}: its weights are quantised ({kind}); name the model that they were made from")
    folder = source.folder / "transformer"
    options = weight_options(folder, source.variant)
    if source.variant and options["variant"] != source.variant:
        raise ValueError(
            f"{folder} has no weights of the variant {source.variant}, but of no variant; leave :{source.variant} out"
        )
    if options["variant"] and not source.variant:
        logger.warning("%s has weights of the variant %s alone; they are loaded", folder, options["variant"])
    try:
        return found.from_pretrained(source.folder, subfolder="transformer", torch_dtype=torch.float32, **options)
    except OSError as error:
        raise ValueError(
            f"{folder}: its weights cannot be loaded ({' '.join(str(error).split())}); download or save it again"
        ) from error


def load_scheduler(source: Source) -> Any:
    """The teacher's scheduler.

    Raises:
        ValueError: There is none, diffusers has no such class, or it has an option that is not honoured.
    """
    path = source.folder / "scheduler" / "scheduler_config.json"
    config = _read(path)
    if not isinstance(config, dict) or "_class_name" not in config:
        raise ValueError(
            f"{source.name}: expected subfolders transformer and scheduler of a diffusers pipeline, found no {path}"
        )
    scheduler_class = getattr(diffusers, str(config["_class_name"]), None)
    if scheduler_class is None:
        raise ValueError(f"{source.name}: unknown scheduler {config['_class_name']!r}; diffusers has none such")
    try:
        scheduler = scheduler_class.from_config(config)
        check_scheduler(scheduler)
    except Exception as error:  # diffusers' are of many kinds, of options that do not go together or need a package
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if "clip_sample" in inspect.signature(scheduler_class.__init__).parameters and scheduler.config.get("clip_sample"):
        logger.warning(
            "%s: clip_sample is not followed, the teacher's ODE is solved without clipping; set it to false", path
        )
    return scheduler


class Companions(Mapping[str, Any]):
    """What a pipeline folder has besides transformer and scheduler: VAE, text encoders, class names; loaded when asked.

    Args:
        source: A diffusers pipeline folder; one without ``model_index.json`` has none.
        variant: Of their weights, where a part has it; else what there is.
    """

    def __init__(self, source: str | Path, variant: str | None = None) -> None:
        self.source = Path(source)
        self.variant = variant
        path = self.source / "model_index.json"
        index = _read(path) if path.is_file() else {}
        if not isinstance(index, dict):
            raise ValueError(f"{path}: expected the index of a diffusers pipeline, got {type(index).__name__}")
        self.index = index
        self.pipeline_class = index["_class_name"] if isinstance(index.get("_class_name"), str) else ""
        self._names = [
            name
            for name, value in index.items()
            if not name.startswith("_")
            and name not in ("transformer", "scheduler")
            and not (isinstance(value, list) and value[0] is None)
        ]
        self._loaded: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def is_component(self, name: str) -> bool:
        """Whether it lies in a folder of its own; else it is a setting."""
        return isinstance(self.index[name], list) and (self.source / name).is_dir()

    def check(self) -> None:
        """See that diffusers has the classes of its own parts, before any of them is needed.

        Raises:
            ValueError: It has not.
        """
        for name in self._names:
            if self.is_component(name) and self.index[name][0] == "diffusers":
                self._class_of(name)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if not self.is_component(name):
            return self.index[name]
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        return self._loaded[name]

    def load(self, name: str, dtype: torch.dtype | None = None) -> Any:
        """Load a part, whether it was loaded before or not.

        Args:
            name: Of the part.
            dtype: Of its weights; if not given, float32 for a part of diffusers, and as stored for one of transformers.

        Raises:
            ValueError: It is no part of diffusers or transformers, they have no such class, or its weights are of
                several variants.
        """
        part_class = self._class_of(name)
        options: dict[str, Any] = {}
        if issubclass(part_class, nn.Module):
            options = self._weights(name)
            if self.index[name][0] == "diffusers":
                options["torch_dtype"] = dtype or torch.float32
            elif dtype is not None:
                options["dtype"] = dtype
        part = part_class.from_pretrained(self.source, subfolder=name, **options)
        return part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part

    def _class_of(self, name: str) -> Any:
        library, class_name = self.index[name]
        where = self.source / name
        if library not in ("diffusers", "transformers"):  # a folder must not choose what is imported and run
            raise ValueError(
                f"{where}: expected a part of diffusers or transformers, model_index.json says {library!r}"
            )
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"{where} needs {library}: pip install 'ardistill[text]'")
        found = getattr(importlib.import_module(library), class_name, None)
        if found is None:
            raise ValueError(
                f"{where}: {library} has no class {class_name!r}, as model_index.json calls it; update {library}, or "
                "write the name that it has there now into model_index.json"
            )
        return found

    def _weights(self, name: str) -> dict[str, Any]:
        """Of a part's weights; of no variant where it has not the one that was asked for but those."""
        folder = self.source / name
        wanted = self.variant if self.variant in _variants(x.name for x in folder.iterdir()) else None
        return weight_options(folder, wanted)

    def copy(self, name: str, folder: Path) -> None:
        """Write a part where diffusers alone finds it and loads it in float32, as it does its own classes.

        transformers loads what the part's config.json says, in place of float32: two dtypes would meet in one pipeline.

        Args:
            name: Of the part, one with a folder of its own.
            folder: New folder.
        """
        source = self.source / name
        has_weights = bool(_variants(x.name for x in source.iterdir()))
        if has_weights and self._weights(name)["variant"]:
            self.load(name, torch.float32).save_pretrained(folder)
            return
        for file in source.rglob("*"):
            if file.is_file() and not _variants([file.name]) - {""}:
                target = folder / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)  # without the modes of a cache that is read-only
        path = folder / "config.json"
        if has_weights and self.index[name][0] == "transformers" and path.is_file():
            config = {key: value for key, value in _read(path).items() if key != "torch_dtype"}
            path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2))

    @property
    def has_uniform_sigmas(self) -> bool:
        """Whether the folder's own pipeline spaces its flow-matching sigmas uniformly, whatever its family's does.

        Then its ``model_index.json`` says ``"_sigmas": "uniform"``, which diffusers skips as it does all private keys.
        """
        return self.index.get("_sigmas") == "uniform"

    @property
    def pixels_per_latent(self) -> int:
        """Along height and width; 1 where there is no VAE."""
        vae = self.get("vae")
        if vae is None:
            return 1
        if vae.config.get("scale_factor_spatial"):
            return vae.config.scale_factor_spatial
        halvings = vae.config.get("temperal_downsample") or vae.config.block_out_channels[1:]
        return 2 ** len(halvings) * (2 if hasattr(vae, "bn") else 1)
