"""Write workflows: of this pack's nodes, and of ComfyUI's own nodes for a student without history.

    python workflows.py STUDENT --model student.safetensors --out workflow.json

writes one of ComfyUI's own nodes for the exported folder STUDENT, whose weights are a file of ComfyUI's folder
``models/diffusion_models``; ``--lora`` names one of ``models/loras`` instead, for the base model. Without a student the
examples of this folder are written anew. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]
"""A workflow in ComfyUI's API format: node id -> class_type and inputs; a link is [node id, number of its output]."""
EXAMPLES = Path(__file__).with_name("example_workflows")


@dataclass(frozen=True)
class NodeType:
    """What a workflow file has to know of a node class."""

    sockets: dict[str, str]
    """Inputs that are links: name -> type."""
    widgets: tuple[str, ...]
    """Inputs that are values, in the order of INPUT_TYPES; ``seed`` and ``noise_seed`` have a control behind them."""
    outputs: tuple[str, ...]
    """Types of the outputs."""


NODE_TYPES = {
    "ARDistillLoadStudent": NodeType({}, ("student", "precision", "memory"), ("ARDISTILL_STUDENT",)),
    "ARDistillLoadStudentFromHub": NodeType({}, ("hub_id", "precision", "memory"), ("ARDISTILL_STUDENT",)),
    "ARDistillSampleText": NodeType(
        {"student": "ARDISTILL_STUDENT"},
        ("prompt", "seed", "batch_size", "width", "height", "num_frames", "guidance_scale"),
        ("IMAGE",),
    ),
    "ARDistillSampleClasses": NodeType(
        {"student": "ARDISTILL_STUDENT"}, ("classes", "seed", "images_per_class", "guidance_scale"), ("IMAGE",)
    ),
    "SaveImage": NodeType({"images": "IMAGE"}, ("filename_prefix",), ()),
    "UNETLoader": NodeType({}, ("unet_name", "weight_dtype"), ("MODEL",)),
    "LoraLoaderModelOnly": NodeType({"model": "MODEL"}, ("lora_name", "strength_model"), ("MODEL",)),
    "DualCLIPLoader": NodeType({}, ("clip_name1", "clip_name2", "type", "device"), ("CLIP",)),
    "TripleCLIPLoader": NodeType({}, ("clip_name1", "clip_name2", "clip_name3"), ("CLIP",)),
    "VAELoader": NodeType({}, ("vae_name",), ("VAE",)),
    "CLIPTextEncode": NodeType({"clip": "CLIP"}, ("text",), ("CONDITIONING",)),
    "FluxGuidance": NodeType({"conditioning": "CONDITIONING"}, ("guidance",), ("CONDITIONING",)),
    "BasicGuider": NodeType({"model": "MODEL", "conditioning": "CONDITIONING"}, (), ("GUIDER",)),
    "RandomNoise": NodeType({}, ("noise_seed",), ("NOISE",)),
    "KSamplerSelect": NodeType({}, ("sampler_name",), ("SAMPLER",)),
    "ManualSigmas": NodeType({}, ("sigmas",), ("SIGMAS",)),
    "EmptySD3LatentImage": NodeType({}, ("width", "height", "batch_size"), ("LATENT",)),
    "SamplerCustomAdvanced": NodeType(
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        (),
        ("LATENT", "LATENT"),
    ),
    "VAEDecode": NodeType({"samples": "LATENT", "vae": "VAE"}, (), ("IMAGE",)),
}
TEXT = "a red cat on the moon"


@dataclass(frozen=True)
class Stock:
    """The files that ComfyUI's own nodes need for a base model."""

    base: str
    encoders: tuple[str, dict[str, str]]
    vae: str


STOCK = {
    "FluxTransformer2DModel": Stock(
        "flux1-dev.safetensors",
        (
            "DualCLIPLoader",
            {
                "clip_name1": "clip_l.safetensors",
                "clip_name2": "t5xxl_fp16.safetensors",
                "type": "flux",
                "device": "default",
            },
        ),
        "ae.safetensors",
    ),
    "SD3Transformer2DModel": Stock(
        "sd3.5_medium.safetensors",
        (
            "TripleCLIPLoader",
            {
                "clip_name1": "clip_l.safetensors",
                "clip_name2": "clip_g.safetensors",
                "clip_name3": "t5xxl_fp16.safetensors",
            },
        ),
        "sd3_vae.safetensors",
    ),
}


def sigma_list(student: dict[str, Any]) -> str:
    """A student's sigmas as the node ManualSigmas reads them: it knows no exponents, so that none is written.

    Args:
        student: The student's configuration in an export's ``model_index.json``.

    Raises:
        ValueError: ComfyUI's Euler sampler does not draw what the student draws.
    """
    knots = student["knots"]
    sigmas, times = knots["sigma"], knots["timesteps"]
    reasons = {
        f"it has history in {student['history_layers']} layers": student["history_layers"] != 0,
        f"its output is {student['output']}": student["output"] != "solver",
        f"its target is {student['target']}": student["target"] != "state",
        f"it was trained with {knots['prediction_type']} prediction": knots["prediction_type"] != "flow",
        "guidance is its input": student["guidance_range"][0] != student["guidance_range"][1],
        f"it starts at sigma {sigmas[0]}": abs(sigmas[0] - 1.0) > 1e-6,
        "its times are not its sigmas": any(
            abs(t - 1000.0 * x) > 0.01 for t, x in zip(times, sigmas[:-1], strict=True)
        ),
    }
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(
            f"ComfyUI's own nodes cannot draw with this student: {', and '.join(wrong)}; use this pack's nodes"
        )
    return ", ".join(f"{x:.12f}".rstrip("0").rstrip(".") for x in sigmas)


def stock_workflow(folder: Path, *, model: str = "", lora: str = "") -> Prompt:
    """A workflow of ComfyUI's own nodes, for a student that its Euler sampler can draw with.

    Args:
        folder: The exported student.
        model: File of its weights in the base model's original layout, in ``models/diffusion_models``.
        lora: File of its adapters in ``models/loras``, if ``model`` is not given.

    Raises:
        ValueError: The student is of another architecture, or ComfyUI's Euler sampler does not draw what it draws.
    """
    index = json.loads((folder / "model_index.json").read_text())
    config = json.loads((folder / "transformer" / "config.json").read_text())
    kind = index["transformer"][1]
    if kind not in STOCK:
        raise ValueError(f"expected a student of {' or '.join(STOCK)}, got {kind}; use this pack's nodes")
    student = index.get("student") or index.get("_student")
    if student is None:
        raise ValueError(f"expected the pipeline folder of an exported student in {folder}, found none")
    rows, columns = student["sample_shapes"][0][1:] if student["sample_shapes"] else (128, 128)
    guidance = student["guidance_range"][0] if config.get("guidance_embeds") else None
    return _stock_workflow(STOCK[kind], sigma_list(student), model, lora, (8 * columns, 8 * rows), guidance)


def _stock_workflow(
    stock: Stock, sigmas: str, model: str, lora: str, size: tuple[int, int], guidance: float | None
) -> Prompt:
    loader, files = stock.encoders
    prompt: Prompt = {
        "1": _node("UNETLoader", unet_name=model or stock.base, weight_dtype="default"),
        "2": _node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=1.0),
        "3": _node(loader, **files),
        "4": _node("CLIPTextEncode", clip=["3", 0], text=TEXT),
        "5": _node("FluxGuidance", conditioning=["4", 0], guidance=guidance),
        "6": _node("BasicGuider", model=["2", 0], conditioning=["5", 0]),
        "7": _node("RandomNoise", noise_seed=0),
        "8": _node("KSamplerSelect", sampler_name="euler"),
        "9": _node("ManualSigmas", sigmas=sigmas),
        "10": _node("EmptySD3LatentImage", width=size[0], height=size[1], batch_size=1),
        "11": _node(
            "SamplerCustomAdvanced",
            noise=["7", 0],
            guider=["6", 0],
            sampler=["8", 0],
            sigmas=["9", 0],
            latent_image=["10", 0],
        ),
        "12": _node("VAELoader", vae_name=stock.vae),
        "13": _node("VAEDecode", samples=["11", 0], vae=["12", 0]),
        "14": _node("SaveImage", images=["13", 0], filename_prefix="student"),
    }
    if model or not lora:
        del prompt["2"]
        prompt["6"]["inputs"]["model"] = ["1", 0]
    if guidance is None:
        del prompt["5"]
        prompt["6"]["inputs"]["conditioning"] = ["4", 0]
    return prompt


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def own_workflow(sampler: str, **inputs: Any) -> Prompt:
    """A workflow of this pack's nodes, with a student of the folder ``models/diffusers/student``."""
    return {
        "1": _node("ARDistillLoadStudent", student="student", precision="auto", memory="keep on the device"),
        "2": _node(sampler, student=["1", 0], **inputs),
        "3": _node("SaveImage", images=["2", 0], filename_prefix="student"),
    }


def graph_of(prompt: Prompt) -> dict[str, Any]:
    """The workflow as ComfyUI's editor saves and opens it: the JSON schema of version 0.4."""
    links: list[list[Any]] = []
    nodes: dict[str, dict[str, Any]] = {}
    depth: dict[str, int] = {}
    for order, (name, node) in enumerate(prompt.items()):
        kind, inputs = NODE_TYPES[node["class_type"]], node["inputs"]
        sources = [inputs[socket][0] for socket in kind.sockets]
        depth[name] = max((depth[x] + 1 for x in sources), default=0)
        row = sum(x == depth[name] for x in depth.values()) - 1
        sockets = []
        for slot, (socket, type_name) in enumerate(kind.sockets.items()):
            source, output = inputs[socket]
            links.append([len(links) + 1, int(source), output, int(name), slot, type_name])
            nodes[source]["outputs"][output]["links"].append(len(links))
            sockets.append({"name": socket, "type": type_name, "link": len(links)})
        nodes[name] = {
            "id": int(name),
            "type": node["class_type"],
            "pos": [340 * depth[name], 240 * row],
            "size": [300, 200],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": sockets,
            "outputs": [{"name": x, "type": x, "links": [], "slot_index": slot} for slot, x in enumerate(kind.outputs)],
            "properties": {"Node name for S&R": node["class_type"]},
            "widgets_values": [*_widget_values(kind, inputs)],
        }
    return {
        "last_node_id": max(map(int, prompt)),
        "last_link_id": len(links),
        "nodes": [*nodes.values()],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _widget_values(kind: NodeType, inputs: dict[str, Any]) -> Iterator[Any]:
    for widget in kind.widgets:
        yield inputs[widget]
        if widget in ("seed", "noise_seed"):
            yield "randomize"


def examples() -> dict[str, Prompt]:
    """The example workflows by the names of their files."""
    four_steps = "1, 0.9, 0.75, 0.5, 0"
    size, flux, sd3 = (1024, 1024), STOCK["FluxTransformer2DModel"], STOCK["SD3Transformer2DModel"]
    return {
        "text": own_workflow(
            "ARDistillSampleText",
            prompt=TEXT,
            seed=0,
            batch_size=1,
            width=0,
            height=0,
            num_frames=0,
            guidance_scale=0.0,
        ),
        "classes": own_workflow(
            "ARDistillSampleClasses", classes="0, 1, 2, 3", seed=0, images_per_class=1, guidance_scale=0.0
        ),
        "without_history_flux": _stock_workflow(flux, four_steps, "student.safetensors", "", size, 3.5),
        "without_history_flux_lora": _stock_workflow(flux, four_steps, "", "student_lora.safetensors", size, 3.5),
        "without_history_sd3": _stock_workflow(sd3, four_steps, "student.safetensors", "", size, None),
        "without_history_sd3_lora": _stock_workflow(sd3, four_steps, "", "student_lora.safetensors", size, None),
    }


def _write(prompt: Prompt, path: Path, api: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(prompt if api else graph_of(prompt), indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("student", nargs="?", type=Path, help="folder of an exported student without history")
    parser.add_argument("--model", default="", help="file of its weights in models/diffusion_models")
    parser.add_argument("--lora", default="", help="file of its adapters in models/loras, for the base model")
    parser.add_argument("--out", type=Path, default=Path("workflow.json"), help="file to write")
    parser.add_argument("--api", action="store_true", help="write the format that ComfyUI's server takes")
    given = parser.parse_args(arguments)
    if given.student is None:
        for name, prompt in examples().items():
            _write(prompt, EXAMPLES / f"{name}.json")
        return
    if bool(given.model) == bool(given.lora):
        parser.error("expected either --model or --lora")
    try:
        _write(stock_workflow(given.student, model=given.model, lora=given.lora), given.out, given.api)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
