"""Load an exported student by this package's own code."""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import torch

from ardistill.core import pipeline
from ardistill.core.config import EXPERTS
from ardistill.core.experts import PairPipeline
from ardistill.families import transformer_class
from ardistill.teacher import Companions, find_source, prepare_vae


def load(folder: str | Path, torch_dtype: torch.dtype | None = None) -> diffusers.DiffusionPipeline:
    """An exported student as a diffusers pipeline, run by this package's code instead of the folder's own.

    Args:
        folder: The folder that ``export`` wrote, or the Hub id that it was uploaded to.
        torch_dtype: Dtype of the weights, as for diffusers' ``from_pretrained``; float32 if not given.

    Raises:
        ValueError: The folder holds no exported student.
    """
    remedy = "name the folder that export wrote, or the id that it was uploaded to"
    found = find_source(folder, parts=["*"], remedy=remedy).folder
    companions = Companions(found)
    index = companions.index
    student = index.get("student") or index.get("_student")
    if student is None:
        raise ValueError(f"expected an exported student in {folder}, found none")
    try:
        transformer, scheduler = (index[part][1] for part in ("transformer", "scheduler"))
        kind = getattr(diffusers, transformer) if hasattr(diffusers, transformer) else transformer_class(transformer)
        classes = {"transformer": kind, "scheduler": getattr(diffusers, scheduler)}
        base = getattr(diffusers, index.get("_base_class_name") or index["_class_name"])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}/model_index.json is damaged, or names a class that this diffusers lacks ({error}); update "
            "diffusers, or export again"
        ) from error
    loaded = {part: kind.from_pretrained(found / part, torch_dtype=torch_dtype) for part, kind in classes.items()}
    # All parts get the transformer's dtype: exports of an older version store text encoders in another one.
    dtype = loaded["transformer"].dtype
    parts = {
        name: companions.load(name, dtype) if companions.is_component(name) else companions[name] for name in companions
    } | loaded
    accepted = inspect.signature(base.__init__).parameters
    missing = {name: None for name in accepted if name in index and name not in parts}
    kind = PairPipeline if EXPERTS["low_noise"] in student else pipeline.FewStepPipeline
    made = pipeline.few_step_pipeline(base, kind)(**parts | missing | {"student": student})
    made.register_to_config(_name_or_path=str(folder))
    if made.vae is not None:
        prepare_vae(made.vae)
    return made
