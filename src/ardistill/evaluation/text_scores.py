"""Scores of images and their prompts: CLIP score, human preference, and folders for GenEval and T2I-CompBench.

The scores take any CLIP model of transformers. The judges of GenEval and T2I-CompBench (detectors, VQA) run in their
own repositories, on folders that are written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ardistill.devices import Device, resolve_device
from ardistill.files.pixels import to_pictures


@dataclass(frozen=True)
class TextScorer:
    """A CLIP model that scores how well each image fits its prompt."""

    model: Any
    """transformers' ``CLIPModel``, in evaluation mode."""
    processor: Any
    """The model's ``CLIPProcessor``: tokenizer, image size and normalisation."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, processor: str | Path | None = None, device: Device = None
    ) -> TextScorer:
        """Load a CLIP model from the Hub or a folder.

        Args:
            name: Hub id or folder of a ``CLIPModel``, such as ``openai/clip-vit-large-patch14`` for CLIP score or
                ``yuvalkirstain/PickScore_v1`` for preference.
            processor: Hub id or folder of tokenizer and image processor, if they are elsewhere.
            device: Where the model runs; the best device if not given.

        Raises:
            ValueError: transformers is missing, or the model is not a complete ``CLIPModel``.
            OSError: There is no such model.
        """
        try:
            from transformers import AutoConfig, CLIPModel, CLIPProcessor
        except ImportError as error:
            raise ValueError("CLIP scores need transformers: pip install 'ardistill[text]'") from error
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "clip":
            raise ValueError(f"expected a CLIPModel in {name} (model_type clip), found {kind!r}; name another model")
        found: Any = CLIPModel.from_pretrained(name, output_loading_info=True)
        model, loaded = found
        if loaded["missing_keys"]:
            missing = ", ".join(sorted(loaded["missing_keys"])[:3])
            raise ValueError(f"expected all weights of a CLIPModel in {name}, missing are {missing}; name a whole one")
        return cls(
            model.to(resolve_device(device)).eval().requires_grad_(False),
            CLIPProcessor.from_pretrained(processor or name),
        )

    @torch.no_grad()
    def cosines(self, images: Tensor, prompts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Cosine similarity between the embeddings of each image and its prompt, (n,), on the CPU.

        Args:
            images: In [-1, 1], (n, c, h, w), c = 1 or 3.
            prompts: One per image; truncated to the tokens that the model takes.
            batch_size: Pairs embedded at once.

        Raises:
            ValueError: The numbers of images and prompts differ or are 0.
        """
        if len(images) != len(prompts) or not prompts:
            raise ValueError(f"expected one prompt per image, got {len(prompts)} prompts for {len(images)} images")
        longest, device = self.model.config.text_config.max_position_embeddings, self.model.device
        found = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
            inputs = self.processor(text=list(prompts[part]), images=to_pictures(images[part]), **options).to(device)
            output = self.model(**inputs)
            found.append(torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds).float().cpu())
        return torch.cat(found)

    def clip_score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIP score, (n,): 100 times the cosine, 0 if it is negative. Arguments and errors are those of `cosines`.

        Source: Hessel et al. 2021, CLIPScore, arXiv:2104.08718, who scale by 2.5; 100 is usual for generated images.
        """
        return 100 * self.cosines(images, prompts).clamp(min=0)

    def preference(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Preference score, (n,): the cosine times the model's scale. Arguments and errors are those of `cosines`.

        The softmax over two images of one prompt is the probability that each is preferred.

        Source: Kirstain et al. 2023, Pick-a-Pic (PickScore), arXiv:2305.01569. HPSv2 (Wu et al. 2023, arXiv:2306.09341)
        is a CLIP model too; its weights must be in transformers' format.
        """
        return self.model.logit_scale.exp().float().cpu() * self.cosines(images, prompts)


def export_geneval(folder: str | Path, metadata: Sequence[Mapping[str, Any]], images: Sequence[Tensor]) -> None:
    """Write images for GenEval's scripts: ``00000/metadata.jsonl``, ``00000/samples/0000.png`` and so on.

    Args:
        folder: A new or empty folder.
        metadata: Lines of GenEval's ``evaluation_metadata.jsonl``, with ``tag``, ``include`` and ``prompt``.
        images: For each line, images in [-1, 1], (k, c, h, w); GenEval takes 4.

    Raises:
        ValueError: The folder is not empty, a line lacks a key, or the numbers of lines and entries of images differ.

    Source: Ghosh et al. 2023, GenEval, arXiv:2310.11513; the layout is that of github.com/djghosh13/geneval.
    """
    for i, line in enumerate(metadata):
        if missing := [key for key in ("tag", "include", "prompt") if key not in line]:
            raise ValueError(f"line {i} of the metadata: expected tag, include and prompt, {missing[0]} is missing")
    folder = _new_folder(folder, metadata, images)
    for i, (line, drawn) in enumerate(zip(metadata, images, strict=True)):
        samples = folder / f"{i:05}" / "samples"
        samples.mkdir(parents=True)
        for k, picture in enumerate(to_pictures(drawn)):
            picture.save(samples / f"{k:04}.png")
        (samples.parent / "metadata.jsonl").write_text(json.dumps(line))


def export_compbench(folder: str | Path, prompts: Sequence[str], images: Sequence[Tensor]) -> None:
    """Write images for T2I-CompBench's scripts: ``samples/PROMPT_000000.png``, numbered across all prompts.

    Args:
        folder: A new or empty folder.
        prompts: T2I-CompBench's prompts. They become file names; its scripts read them up to the first underscore.
        images: For each prompt, images in [-1, 1], (k, c, h, w); T2I-CompBench takes 10.

    Raises:
        ValueError: The folder is not empty, a prompt contains ``_`` or ``/``, or the numbers of prompts and entries of
            images differ.

    Source: Huang et al. 2023, T2I-CompBench, arXiv:2307.06350; the layout is that of
    github.com/Karine-Huang/T2I-CompBench.
    """
    if wrong := [prompt for prompt in prompts if "_" in prompt or "/" in prompt]:
        raise ValueError(
            f"expected prompts without _ and /, which file names cannot hold, got {wrong[0]!r}; leave it out"
        )
    samples = _new_folder(folder, prompts, images) / "samples"
    samples.mkdir(parents=True)
    number = 0
    for prompt, drawn in zip(prompts, images, strict=True):
        for picture in to_pictures(drawn):
            picture.save(samples / f"{prompt}_{number:06}.png")
            number += 1


def _new_folder(folder: str | Path, asked: Sequence[Any], images: Sequence[Tensor]) -> Path:
    """The folder's path, after a check that it is empty and that there are images for each prompt."""
    folder = Path(folder)
    if len(asked) != len(images) or not len(asked):
        raise ValueError(f"expected images for each prompt, got {len(images)} entries for {len(asked)} prompts")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected {folder} to be empty; choose a new folder")
    return folder
