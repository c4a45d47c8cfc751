"""A student's adapters as a LoRA that others load on the base model: diffusers, PEFT and ComfyUI.

diffusers reads PEFT's names under ``transformer.`` and takes rank and alpha from the JSON in the header. ComfyUI looks
up each of its own weights by several names (``model_lora_keys_unet`` in its ``comfy/lora.py``): of most families it
knows diffusers' names, under ``transformer.``, by tables in ``comfy/utils.py``; of every model it knows the names of
the original layout, under ``diffusion_model.``. It reads alpha as a tensor beside A and B.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch
from torch import Tensor

from ardistill.files import load_tensors, save_tensors, write_whole
from ardistill.publishing.layouts import HUNYUAN_DIT, LUMINA2, WAN, KeyLayout, last_block
from ardistill.publishing.weight_files import (
    base_model,
    comfyui_of_two,
    described,
    loading_by_comfyui,
    python_lines,
)
from ardistill.student import Student
from ardistill.student.files import ADAPTERS, adapter_weights
from ardistill.student.model import FewStepModel
from ardistill.teacher import StockDrawing, Teacher, part_to_start_from
from ardistill.trajectories.parquet import PLACE

COMFYUI: dict[str, KeyLayout | None] = {
    "SD3Transformer2DModel": None,
    "FluxTransformer2DModel": None,
    "Flux2Transformer2DModel": None,
    "AuraFlowTransformer2DModel": None,
    "PixArtTransformer2DModel": None,
    "QwenImageTransformer2DModel": None,
    "ZImageTransformer2DModel": None,
    "WanTransformer3DModel": WAN,
    "Lumina2Transformer2DModel": LUMINA2,
    "HunyuanDiT2DModel": HUNYUAN_DIT,
}
"""Transformer class -> the layout in which ComfyUI knows it; None where it knows diffusers' names. It lacks others."""

FILES = {"transformer": ADAPTERS, "transformer_2": "pytorch_lora_weights_2.safetensors"}
"""Component of the pipeline -> the file of its adapters."""

Adapters = dict[str, tuple[Tensor, Tensor]]
"""Name of a linear layer -> its A, (rank, in), and B, (out, rank); the layer's weight gains B A."""


def write_lora(student: Student, teacher: Teacher, folder: Path, name: str, drawing: StockDrawing) -> str:
    """Write the adapters of a student without history for diffusers or PEFT, and for ComfyUI if it knows the class.

    Args:
        student: A student with adapters, on its teacher's weights, and with no other weights of its own.
        teacher: Its teacher.
        folder: Where the files are written.
        name: Title of the adapters, and beginning of the name of ComfyUI's file.
        drawing: How the teacher's pipeline class draws the student.

    Returns:
        Markdown that says how to load the adapters on the base model and draw.

    Raises:
        ValueError: The student has no adapters, or they are those of a second transformer.
    """
    if len(student.parts) > 1:
        return _write_two(student, teacher, folder, name, drawing)
    if part_to_start_from(teacher, student.config.knots) != "transformer":
        raise ValueError(
            "form lora is for adapters of the base's transformer, these are of its transformer_2; export the student "
            "with form pipeline"
        )
    weights, adapters, rank = _adapters_of(student)
    loadable = getattr(getattr(diffusers, teacher.pipeline_class), "_lora_loadable_modules", ())
    if "transformer" in loadable:  # PRX's pipeline has the loader of a UNet
        _write_for_diffusers(weights, adapters, rank, folder / FILES["transformer"])
        lines = f'pipeline.load_lora_weights("{PLACE}", weight_name="{ADAPTERS}")'
        reason, imports = "", ""
    else:
        _write_for_peft(weights, adapters, rank, folder)
        model = f'PeftModel.from_pretrained(pipeline.transformer, "{PLACE}")'
        lines, imports = f"pipeline.transformer = {model}.merge_and_unload()", "from peft import PeftModel"
        reason = f" PEFT\nadds the adapters to the transformer, as diffusers' {teacher.pipeline_class} loads none."
    load = f"pipeline = {teacher.pipeline_class}.from_pretrained({base_model(student, teacher)})\n{lines}"
    loading = f"A LoRA of rank {rank} for the base model, which is loaded unchanged.{reason}\n\n"
    loading += python_lines(student, teacher, drawing, load, more=imports)
    if student.class_name not in COMFYUI:
        return loading
    file = f"{name}-comfyui.safetensors"
    _write_for_comfyui(student, adapters, rank, name, folder / file)
    more = loading_by_comfyui(student, file, "models/loras", "*LoraLoaderModelOnly* at strength 1")
    return f"{loading}\n\n{more}"


def _write_two(student: Student, teacher: Teacher, folder: Path, name: str, drawing: StockDrawing) -> str:
    """Write the adapters of both transformers of a student; `write_lora` says how one is written."""
    load = [f"pipeline = {teacher.pipeline_class}.from_pretrained({base_model(student, teacher)})"]
    files, ranks = [], []
    for component, part in student.parts.items():
        weights, adapters, rank = _adapters_of(part)
        _write_for_diffusers(weights, adapters, rank, folder / FILES[component])
        into = "" if component == "transformer" else f", load_into_{component}=True"
        load.append(f'pipeline.load_lora_weights("{PLACE}", weight_name="{FILES[component]}"{into})')
        files.append(f"{name}-{part.config.expert}-comfyui.safetensors")
        ranks.append(str(rank))
        _write_for_comfyui(part, adapters, rank, name, folder / files[-1])
    lines = python_lines(student, teacher, drawing, "\n".join(load))
    head = f"LoRAs of rank {' and '.join(ranks)} for the two transformers of the base model, which is loaded unchanged."
    return "\n\n".join([head, lines, comfyui_of_two(student, files)])


def _adapters_of(student: FewStepModel) -> tuple[dict[str, Tensor], Adapters, int]:
    """A student's adapters by PEFT's names, the same by layers, and their rank.

    Raises:
        ValueError: It has none.
    """
    if not student.config.lora_rank:
        raise ValueError(
            "expected a student with adapters, got one whose weights are all trained or merged; distil with lora_rank, "
            "and read it with Student.from_adapters"
        )
    weights = adapter_weights(student)
    adapters = {
        layer.removesuffix(".lora_A.weight"): (a, weights[layer.replace("lora_A", "lora_B")])
        for layer, a in weights.items()
        if layer.endswith(".lora_A.weight")
    }
    return weights, adapters, student.config.lora_rank


def stored_adapters(folder: Path, component: str = "transformer") -> dict[str, Tensor]:
    """The adapters of a component that ``write_lora`` wrote, by their names in the transformer.

    Raises:
        ValueError: There are none.
    """
    for file, prefix in (("adapter_model.safetensors", "base_model.model."), (FILES[component], "transformer.")):
        if (path := folder / file).is_file():
            return {name.removeprefix(prefix): value for name, value in load_tensors(path).items()}
    raise ValueError(f"expected adapters in {folder}, found none; export them with form lora")


def _write_for_diffusers(weights: Mapping[str, Tensor], adapters: Adapters, rank: int, file: Path) -> None:
    """Write a file that ``load_lora_weights`` reads."""
    config = {"r": rank, "lora_alpha": rank, "target_modules": sorted(adapters)}
    header = json.dumps({f"transformer.{key}": value for key, value in config.items()}, indent=2, sort_keys=True)
    named = {f"transformer.{name}": value for name, value in weights.items()}
    save_tensors(named, file, {"lora_adapter_metadata": header})


def _write_for_comfyui(student: FewStepModel, adapters: Adapters, rank: int, name: str, file: Path) -> None:
    """Write a file that ComfyUI reads, under the names that it looks up."""
    header = described(student, name, "lora") | {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    save_tensors(for_comfyui(adapters, COMFYUI[student.class_name]), file, header)


def _write_for_peft(weights: Mapping[str, Tensor], adapters: Adapters, rank: int, folder: Path) -> None:
    """Write the folder that ``PeftModel.from_pretrained`` reads."""
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(adapters), inference_mode=True)
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)  # sets, of modules, in one order
    write_whole(folder / "adapter_config.json", text.encode())
    named = {f"base_model.model.{name}": value for name, value in weights.items()}
    save_tensors(named, folder / "adapter_model.safetensors")


def for_comfyui(adapters: Adapters, layout: KeyLayout | None) -> dict[str, Tensor]:
    """The tensors of a file that ComfyUI loads as a LoRA.

    Where several layers are fused in the original layout, so are their adapters: A is stacked, B has the layers' Bs
    on its diagonal, and the rank is the sum of theirs.

    Args:
        adapters: Of each linear layer, by diffusers' name.
        layout: The original layout; None where ComfyUI knows diffusers' names.
    """
    if layout is None:
        found = {f"transformer.{name}": pair for name, pair in adapters.items()}
    else:
        last, fused = last_block(adapters), dict[str, dict[int, tuple[Tensor, Tensor]]]()
        for name, (a, b) in adapters.items():
            place = layout.find(name)
            fused.setdefault(f"diffusion_model.{place.name}", {})[place.part] = a, layout.swap(name, b, last)
        found = {name: _fuse([parts[i] for i in sorted(parts)]) for name, parts in fused.items()}
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in found.items():
        tensors |= {
            f"{name}.lora_A.weight": a,
            f"{name}.lora_B.weight": b,
            f"{name}.alpha": torch.tensor(float(len(a))),
        }
    return tensors


def _fuse(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A and B of layers whose outputs are stacked."""
    return torch.cat([a for a, _ in parts]), torch.block_diag(*(b for _, b in parts))
