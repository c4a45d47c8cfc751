"""A tiny random instance of every family's real diffusers class, and a tiny pipeline around it: a file each."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import original_dit  # noqa: F401  # registers its class
import torch
import transformers

from tiny.instance import Tiny, TinyPipeline
from tiny.parts import clip_tokenizer

_NAMES = {x.name for x in pkgutil.iter_modules(__path__)} - {"instance", "parts"}
_FILES = {x.replace("_", "-"): importlib.import_module(f"tiny.{x}") for x in sorted(_NAMES)}

TINY: dict[str, Tiny] = {name: tiny for file in _FILES.values() for name, tiny in file.INSTANCES.items()}
"""Name of a test -> instance."""
ONE_EACH = [*{tiny.class_name: name for name, tiny in TINY.items()}.values()]
"""One instance of each class: of several the last, which has a second attention, masks or prompts of unequal length."""
PIPELINES: dict[str, TinyPipeline] = {name: file.PIPELINE for name, file in _FILES.items()}
"""Name of a family's file -> its pipeline."""
PROMPTED = [name for name in PIPELINES if name != "dit"]
"""Pipelines that draw prompts."""


def save(name: str, folder: Path) -> Path:
    """Make and save a pipeline; the folder is what a Hub id downloads to."""
    torch.manual_seed(0)
    PIPELINES[name].make().save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Save a CLIP with its tokenizer and image processor, what a scorer's Hub id downloads to."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 60, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"image_size": 16, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=sizes | text, vision_config=sizes | vision, projection_dim=8)
    pictures = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(pictures, clip_tokenizer()).save_pretrained(folder)
    return folder


GATE = 0.5
"""What ``open_gates`` sets: closed, as they start, gates would hide a wrong history from every test."""


def open_gates(student):
    """Let a new student with gates see its history."""
    for name, parameter in student.named_parameters():
        if name.endswith("history_gate"):
            torch.nn.init.constant_(parameter, GATE)
