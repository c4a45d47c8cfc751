"""Scores of prompts for real models: CLIP score, human preference, and folders for GenEval and T2I-CompBench.

What needs weights takes any CLIP of transformers, by id or folder. GenEval's and T2I-CompBench's own judges (detectors,
VQA) run in their repositories, on the folders that are written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ardistill.devices import Device, resolve_device


@dataclass(frozen=True)
class TextScorer:
    """A CLIP that says how well each image goes with its prompt."""

    model: Any
    """transformers' ``CLIPModel``, in evaluation mode."""
    processor: Any
    """Its ``CLIPProcessor``: tokenizer, size and normalisation."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, processor: str | Path | None = None, device: Device = None
    ) -> TextScorer:
        """Load a CLIP by Hub id or from a folder.

        Args:
            name: ``openai/clip-vit-large-patch14`` for CLIP score, ``yuvalkirstain/PickScore_v1`` for preference, or
                any other of class ``CLIPModel``.
            processor: Where its tokenizer and image processor are, if elsewhere.
            device: Where it runs; the best device there is if not given.

        Raises:
            ValueError: transformers is missing, or the model is no whole ``CLIPModel``.
            OSError: There is no such model.
        """
        try:
            from transformers import AutoConfig, CLIPModel, CLIPProcessor
        except ImportError as error:
            raise ValueError("CLIP needs transformers: pip install 'ardistill[text]'") from error
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "clip":
            raise ValueError(f"expected a CLIPModel in {name} (model_type clip), found {kind!r}")
        found: Any = CLIPModel.from_pretrained(name, output_loading_info=True)
        model, loaded = found
        if loaded["missing_keys"]:
            missing = ", ".join(sorted(loaded["missing_keys"])[:3])
            raise ValueError(f"expected all weights of a CLIPModel in {name}, missing are {missing}")
        return cls(
            model.to(resolve_device(device)).eval().requires_grad_(False),
            CLIPProcessor.from_pretrained(processor or name),
        )

    @torch.no_grad()
    def cosines(self, images: Tensor, prompts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Cosine of each image's embedding and its prompt's, (n,), on the CPU.

        Args:
            images: In [-1, 1], (n, c, h, w), c = 1 or 3.
            prompts: One for each; cut after as many tokens as the model takes.
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
            inputs = self.processor(text=list(prompts[part]), images=as_pictures(images[part]), **options).to(device)
            output = self.model(**inputs)
            found.append(torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds).float().cpu())
        return torch.cat(found)

    def clip_score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """100 times the cosine, 0 where it is negative, (n,); arguments and errors are those of `cosines`.

        Source: Hessel et al. 2021, CLIPScore, arXiv:2104.08718, which scales by 2.5; 100 is usual for generated images.
        """
        return 100 * self.cosines(images, prompts).clamp(min=0)

    def preference(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosine times the model's own scale, (n,); arguments and errors are those of `cosines`.

        Two images of one prompt are preferred with the softmax of it.

        Source: Kirstain et al. 2023, Pick-a-Pic (PickScore), arXiv:2305.01569; Wu et al. 2023, HPSv2, arXiv:2306.09341,
        is a CLIP, too, and is read where its weights are in transformers' format.
        """
        return self.model.logit_scale.exp().float().cpu() * self.cosines(images, prompts)


def as_pictures(images: Tensor) -> list[Image.Image]:
    """RGB pictures of images in [-1, 1], (n, c, h, w), c = 1 or 3."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)
    return [Image.fromarray(x) for x in pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def export_geneval(folder: str | Path, metadata: Sequence[Mapping[str, Any]], images: Sequence[Tensor]) -> None:
    """Write images as GenEval's scripts read them: ``00000/metadata.jsonl``, ``00000/samples/0000.png`` and so on.

    Args:
        folder: New or empty.
        metadata: Lines of GenEval's ``evaluation_metadata.jsonl``: ``tag``, ``include``, ``prompt``.
        images: Of each line, in [-1, 1], (k, c, h, w); GenEval draws 4.

    Raises:
        ValueError: The folder is not empty, a line lacks a key, or there are not as many lines as entries of images.

    Source: Ghosh et al. 2023, GenEval, arXiv:2310.11513; the layout is that of github.com/djghosh13/geneval.
    """
    for i, line in enumerate(metadata):
        if missing := [key for key in ("tag", "include", "prompt") if key not in line]:
            raise ValueError(f"line {i} of the metadata: expected tag, include and prompt, {missing[0]} is missing")
    folder = _new_folder(folder, metadata, images)
    for i, (line, drawn) in enumerate(zip(metadata, images, strict=True)):
        samples = folder / f"{i:05}" / "samples"
        samples.mkdir(parents=True)
        for k, picture in enumerate(as_pictures(drawn)):
            picture.save(samples / f"{k:04}.png")
        (samples.parent / "metadata.jsonl").write_text(json.dumps(line))


def export_compbench(folder: str | Path, prompts: Sequence[str], images: Sequence[Tensor]) -> None:
    """Write images as T2I-CompBench's scripts read them: ``samples/PROMPT_000000.png``, numbered through all prompts.

    Args:
        folder: New or empty.
        prompts: Of T2I-CompBench; they become names of files, and end for its scripts at the first underscore.
        images: Of each prompt, in [-1, 1], (k, c, h, w); T2I-CompBench draws 10.

    Raises:
        ValueError: The folder is not empty, a prompt holds ``_`` or ``/``, or there are not as many as entries of
            images.

    Source: Huang et al. 2023, T2I-CompBench, arXiv:2307.06350; the layout is that of
    github.com/Karine-Huang/T2I-CompBench.
    """
    if wrong := [prompt for prompt in prompts if "_" in prompt or "/" in prompt]:
        raise ValueError(f"expected prompts without _ and /, which no name of a file can say, got {wrong[0]!r}")
    samples = _new_folder(folder, prompts, images) / "samples"
    samples.mkdir(parents=True)
    number = 0
    for prompt, drawn in zip(prompts, images, strict=True):
        for picture in as_pictures(drawn):
            picture.save(samples / f"{prompt}_{number:06}.png")
            number += 1


def _new_folder(folder: str | Path, asked: Sequence[Any], images: Sequence[Tensor]) -> Path:
    folder = Path(folder)
    if len(asked) != len(images) or not len(asked):
        raise ValueError(f"expected images of each prompt, got {len(images)} entries for {len(asked)} prompts")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected {folder} to be empty; choose a new folder")
    return folder
