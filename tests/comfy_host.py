"""Stands in for ComfyUI where no ComfyUI can be installed: loads a node pack, checks a workflow and runs it.

It follows ComfyUI's own source, of which no line is here: ``load_custom_node`` of nodes.py, ``validate_inputs`` and the
output cache of execution.py. Node classes run as they are, on real models. Its other modules are as small as what the
pack uses of them.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


class InterruptProcessingException(Exception):
    """What the user's interrupt raises in ComfyUI."""


class ComfyHost:
    """A ComfyUI with one folder of models, one node pack and stand-ins of the stock nodes that workflows here use.

    ``events`` has what nodes reported: progress, and memory that ComfyUI was asked to free. The user's interrupt is
    seen by the ``interrupt_in``-th question for it.
    """

    def __init__(self, models: Path, pack: Path, device: str = "cpu") -> None:
        self.models, self.device = models, device
        self.events: list[tuple[Any, ...]] = []
        self.interrupt_in = math.inf
        self.saved: list[torch.Tensor] = []
        self.outputs: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        self.instances: dict[str, Any] = {}
        sys.modules.update(self._modules())
        self.pack = _load_custom_node(pack)
        self.classes = dict(self.pack.NODE_CLASS_MAPPINGS) | stock_nodes(self)

    def _modules(self) -> dict[str, ModuleType]:
        host = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total, self.current = total, 0

            def update(self, value: int) -> None:
                self.current += value
                host.events.append(("progress", self.current, self.total))

        def throw_exception_if_processing_interrupted() -> None:
            host.interrupt_in -= 1
            if host.interrupt_in <= 0:
                host.interrupt_in = math.inf  # ComfyUI forgets the interrupt when it has raised
                raise InterruptProcessingException

        management = {
            "get_torch_device": lambda: torch.device(host.device),
            "free_memory": lambda size, device: host.events.append(("free", size, str(device))),
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
            "InterruptProcessingException": InterruptProcessingException,
        }
        made = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": management,
            "folder_paths": {"get_folder_paths": lambda kind: [str(host.models / kind)]},
        }
        modules = {name: ModuleType(name) for name in made}
        for name, members in made.items():
            vars(modules[name]).update(members)
            if "." in name:
                setattr(modules["comfy"], name.partition(".")[2], modules[name])
        return modules

    def validate(self, prompt: dict[str, Any]) -> list[str]:
        """What is wrong with a workflow in API format, as ComfyUI's server says before it runs anything."""
        if missing := [node["class_type"] for node in prompt.values() if node["class_type"] not in self.classes]:
            return [f"missing_node_type: {name}" for name in missing]
        if not any(getattr(self.classes[node["class_type"]], "OUTPUT_NODE", False) for node in prompt.values()):
            return ["prompt_no_outputs"]
        return [error for name in prompt for error in self._validate_node(prompt, name)]

    def _validate_node(self, prompt: dict[str, Any], name: str) -> list[str]:
        node, kind = prompt[name], self.classes[prompt[name]["class_type"]]
        types, errors = kind.INPUT_TYPES(), []
        check = getattr(kind, "VALIDATE_INPUTS", None)
        checked_there = inspect.getfullargspec(check).args if check else []
        for category in ("required", "optional"):
            for key, (expected, *rest) in types.get(category, {}).items():
                if key not in node["inputs"]:
                    errors += [f"required_input_missing: {key}"] if category == "required" else []
                elif isinstance(value := node["inputs"][key], list):
                    source, output = value
                    received = self.classes[prompt[source]["class_type"]].RETURN_TYPES[output]
                    errors += [f"return_type_mismatch: {key}"] if received != expected else []
                else:
                    errors += _check_value(key, value, expected, rest[0] if rest else {}, key in checked_there)
        if check:
            given = {key: value for key, value in node["inputs"].items() if key in checked_there}
            verdict = check(**{key: None if isinstance(value, list) else value for key, value in given.items()})
            errors += [] if verdict is True else [f"custom_validation_failed: {verdict}"]
        return errors

    def run(self, prompt: dict[str, Any]) -> list[str]:
        """Validate and run a workflow; nodes whose inputs did not change keep their outputs.

        Returns:
            Ids of the nodes that ran.
        """
        if errors := self.validate(prompt):
            raise ValueError("; ".join(errors))
        ran: list[str] = []
        self.outputs = {name: x for name, x in self.outputs.items() if name in prompt}
        for name, node in prompt.items():  # sources stand before what uses them in the workflows here
            kind, inputs = self.classes[node["class_type"]], node["inputs"]
            links = {key: value for key, value in inputs.items() if isinstance(value, list)}
            constants = {key: value for key, value in inputs.items() if key not in links}
            changed = kind.IS_CHANGED(**constants) if hasattr(kind, "IS_CHANGED") else False
            above = [(key, value, self.outputs[value[0]][0]) for key, value in sorted(links.items())]
            signature = (node["class_type"], sorted(constants.items()), changed, above)
            if name in self.outputs and self.outputs[name][0] == signature:
                continue
            given = constants | {key: self.outputs[source][1][output] for key, (source, output) in links.items()}
            if name not in self.instances or type(self.instances[name]) is not kind:
                self.instances[name] = kind()
            self.outputs.pop(name, None)
            found = getattr(self.instances[name], kind.FUNCTION)(**given)
            assert isinstance(found, tuple) and len(found) == len(kind.RETURN_TYPES)
            self.outputs[name] = signature, found
            ran.append(name)
        return ran

    def free(self) -> None:
        """The button that frees models and node cache: execution.py resets its caches."""
        self.outputs, self.instances = {}, {}


def _load_custom_node(folder: Path) -> ModuleType:
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
    assert spec is not None and spec.loader is not None
    for stale in [x for x in sys.modules if x == name or x.startswith(f"{name}.")]:
        del sys.modules[stale]
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_value(key: str, value: Any, expected: Any, options: dict[str, Any], checked_there: bool) -> list[str]:
    convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    if isinstance(expected, str) and expected not in convert:
        return [f"a {expected} is not a value: {key}"]
    if isinstance(expected, str):
        try:
            value = convert[expected](value)
        except (TypeError, ValueError):
            return [f"invalid_input_type: {key}"]
    if checked_there:
        return []
    if "min" in options and value < options["min"]:
        return [f"value_smaller_than_min: {key}"]
    if "max" in options and value > options["max"]:
        return [f"value_bigger_than_max: {key}"]
    return [f"value_not_in_list: {key}"] if isinstance(expected, list) and value not in expected else []


FILES = ["student.safetensors", "student_lora.safetensors", "flux1-dev.safetensors"]
FILES += ["sd3.5_medium.safetensors", "ae.safetensors", "sd3_vae.safetensors"]
ENCODERS = ["clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors"]
SEED = ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True})
SIDE = ("INT", {"default": 1024, "min": 16, "max": 16384, "step": 16})
COUNT = ("INT", {"default": 1, "min": 1, "max": 4096})
STOCK_NODES = {
    "UNETLoader": (("MODEL",), {"unet_name": (FILES,), "weight_dtype": (["default", "fp8_e4m3fn"], {})}),
    "LoraLoaderModelOnly": (
        ("MODEL",),
        {
            "model": ("MODEL",),
            "lora_name": (FILES,),
            "strength_model": ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}),
        },
    ),
    "DualCLIPLoader": (
        ("CLIP",),
        {
            "clip_name1": (ENCODERS,),
            "clip_name2": (ENCODERS,),
            "type": (["sdxl", "sd3", "flux"],),
            "device": (["default", "cpu"], {"advanced": True}),
        },
    ),
    "TripleCLIPLoader": (("CLIP",), {f"clip_name{i}": (ENCODERS,) for i in (1, 2, 3)}),
    "VAELoader": (("VAE",), {"vae_name": (FILES,)}),
    "CLIPTextEncode": (("CONDITIONING",), {"text": ("STRING", {"multiline": True}), "clip": ("CLIP", {})}),
    "FluxGuidance": (
        ("CONDITIONING",),
        {"conditioning": ("CONDITIONING",), "guidance": ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0})},
    ),
    "BasicGuider": (("GUIDER",), {"model": ("MODEL",), "conditioning": ("CONDITIONING",)}),
    "RandomNoise": (("NOISE",), {"noise_seed": SEED}),
    "KSamplerSelect": (("SAMPLER",), {"sampler_name": (["euler", "heun"],)}),
    "ManualSigmas": (("SIGMAS",), {"sigmas": ("STRING", {"default": "1, 0.5", "multiline": False})}),
    "EmptySD3LatentImage": (("LATENT",), {"width": SIDE, "height": SIDE, "batch_size": COUNT}),
    "SamplerCustomAdvanced": (
        ("LATENT", "LATENT"),
        {
            "noise": ("NOISE",),
            "guider": ("GUIDER",),
            "sampler": ("SAMPLER",),
            "sigmas": ("SIGMAS",),
            "latent_image": ("LATENT",),
        },
    ),
    "VAEDecode": (("IMAGE",), {"samples": ("LATENT",), "vae": ("VAE",)}),
}
"""Outputs and inputs of ComfyUI's own nodes, as its source declares them; none of these runs here."""


def stock_nodes(host: ComfyHost) -> dict[str, Any]:
    """ComfyUI's own nodes; SaveImage, of which each workflow has one, keeps the images."""

    class SaveImage:
        RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "save_images", True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

        def save_images(self, images: torch.Tensor, filename_prefix: str) -> tuple[Any, ...]:
            assert images.ndim == 4 and images.shape[-1] == 3 and images.device.type == "cpu"
            assert images.dtype == torch.float32 and images.min() >= 0.0 and images.max() <= 1.0
            host.saved.append(images)
            return ()

    made = {
        name: SimpleNamespace(RETURN_TYPES=returns, INPUT_TYPES=lambda inputs=inputs: {"required": inputs})
        for name, (returns, inputs) in STOCK_NODES.items()
    }
    return made | {"SaveImage": SaveImage}
