"""A pipeline's components besides transformer and scheduler: VAE, text encoders, tokenizers, class names."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ardistill.teacher import vae
from ardistill.teacher.loading import read_config
from ardistill.teacher.variants import find_variants, weight_options


class Companions(Mapping[str, Any]):
    """Components and settings of a pipeline folder by name, without transformer and scheduler, loaded at first use.

    Args:
        source: A diffusers pipeline folder; without ``model_index.json`` it has no companions.
        variant: Weights to load where a component has this variant; otherwise the only ones present.
        dtype: Dtype of the weights of diffusers' components. With ``torch.bfloat16``, those of transformers that were
            saved in float32 are loaded in it as well; all others keep the dtype that they were saved in.

    Raises:
        ValueError: ``model_index.json`` is not the index of a pipeline.
    """

    def __init__(self, source: str | Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.source = Path(source)
        self.dtype = dtype
        self.variant = variant
        path = self.source / "model_index.json"
        index = read_config(path) if path.is_file() else {}
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

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if not self.is_component(name):
            return self.index[name]
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        return self._loaded[name]

    def move(self, name: str, device: torch.device | str) -> None:
        """Move a component to a device, if it has been loaded."""
        if name in self._loaded:
            self._loaded[name].to(device)

    def is_component(self, name: str) -> bool:
        """Whether an entry is a component with a folder; otherwise it is a setting."""
        return isinstance(self.index[name], list) and (self.source / name).is_dir()

    def check(self) -> None:
        """Check that diffusers has the class of each of its components, before any is needed.

        Raises:
            ValueError: It lacks one.
        """
        for name in self._names:
            if self.is_component(name) and self.index[name][0] == "diffusers":
                self._class_of(name)

    def load(self, name: str, dtype: torch.dtype | None = None) -> Any:
        """Load a component anew, frozen and in evaluation mode.

        Args:
            name: Name of the component.
            dtype: Dtype of its weights; if not given, that of the companions.

        Raises:
            ValueError: It is not a component of diffusers or transformers, they have no such class, or its weights have
                several variants.
        """
        part_class = self._class_of(name)
        options: dict[str, Any] = {}
        if issubclass(part_class, nn.Module):
            options = self._weights(name)
            if self.index[name][0] == "diffusers":
                options["torch_dtype"] = dtype or self.dtype
            elif dtype is not None or not self._is_kept(name):
                options["dtype"] = dtype or self.dtype
        part = part_class.from_pretrained(self.source / name, **options)
        return part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part

    def _is_kept(self, name: str) -> bool:
        """Whether a component of transformers is loaded in the dtype that it was saved in."""
        config = read_config(self.source / name / "config.json") or {}
        return self.dtype == torch.float32 or str(config.get("dtype") or config.get("torch_dtype")).endswith("float16")

    def copy(self, name: str, folder: Path) -> None:
        """Copy a component so that diffusers finds it without a variant and loads it in float32.

        transformers would load the dtype that config.json names, and a pipeline would mix two dtypes; the copy's
        config.json says float32.

        Args:
            name: Name of a component.
            folder: New folder.
        """
        source = self.source / name
        has_weights = bool(find_variants(x.name for x in source.iterdir()))
        if has_weights and self._weights(name)["variant"]:
            self.load(name, torch.float32).save_pretrained(folder)
            return
        for file in source.rglob("*"):
            if file.is_file() and not find_variants([file.name]) - {""}:
                target = folder / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)  # does not copy the mode: files in a cache may be read-only
        path = folder / "config.json"
        if has_weights and self.index[name][0] == "transformers" and path.is_file():
            config = {key: value for key, value in read_config(path).items() if key != "torch_dtype"}
            path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2))

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
        """Options that choose a component's weights: the wanted variant if the component has it."""
        folder = self.source / name
        wanted = self.variant if self.variant in find_variants(x.name for x in folder.iterdir()) else None
        return weight_options(folder, wanted)

    @property
    def has_uniform_sigmas(self) -> bool:
        """Whether the folder's pipeline spaces its flow-matching sigmas uniformly, unlike others of its family.

        Then ``model_index.json`` says ``"_sigmas": "uniform"``; diffusers ignores keys that begin with an underscore.
        """
        return self.index.get("_sigmas") == "uniform"

    @property
    def pixels_per_latent(self) -> int:
        """Edge in pixels of the square that one latent stands for; 1 without a VAE."""
        model = self.get("vae")
        return 1 if model is None else vae.pixels_per_latent(model)
