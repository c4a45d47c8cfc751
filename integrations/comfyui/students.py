"""Students inside ComfyUI: where their folders are, how they are loaded, and how they draw."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

import ardistill
from ardistill.core.architecture import architecture_of
from ardistill.teacher.vae import pixels_per_latent

PRECISIONS = {"auto": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""What the weights are kept and used in; ``auto`` is bfloat16 on CUDA and float32 elsewhere."""
KEEP, PART_BY_PART = "keep on the device", "one part at a time"
MEMORY = (KEEP, PART_BY_PART)
"""Where the weights are between runs: on the device, or in main memory, from where each part is moved for its turn."""


@dataclass(frozen=True)
class LoadedStudent:
    """A student's pipeline, as the loaders hand it to the samplers."""

    pipeline: Any
    memory: str

    @property
    def takes_text(self) -> bool:
        return "prompt" in inspect.signature(self.pipeline.__call__).parameters

    @property
    def num_steps(self) -> int:
        return len(self.pipeline.config.student["knots"]["timesteps"])


def student_folders() -> dict[str, Path]:
    """Exported students by their names, which are paths below ComfyUI's folders ``models/diffusers``."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for folder, inner, files in os.walk(root, followlinks=True):
            if "model_index.json" in files:
                inner.clear()  # the parts of a pipeline
                with contextlib.suppress(OSError, ValueError):
                    index = json.loads(Path(folder, "model_index.json").read_text(encoding="utf-8"))
                    if "student" in index or "_student" in index:  # the second: diffusers' own pipeline draws it, too
                        found.setdefault(Path(folder).relative_to(root).as_posix(), Path(folder))
    return found


def load_student(name: str | Path, precision: str, memory: str) -> LoadedStudent:
    """Load an exported student by ardistill's own code: nothing of its folder is executed.

    Args:
        name: Folder, or Hub id, with ``@REVISION`` behind it if it is not the newest.
        precision: A key of ``PRECISIONS``.
        memory: One of ``MEMORY``.

    Raises:
        ValueError: There is no student.
    """
    device = comfy.model_management.get_torch_device()
    dtype = PRECISIONS[precision] or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    pipeline = ardistill.load(name, dtype)
    pipeline.set_progress_bar_config(disable=True)  # ComfyUI shows its own
    if memory == PART_BY_PART and device.type != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
    return LoadedStudent(pipeline, memory)


def draw(student: LoadedStudent, seed: int, options: dict[str, Any]) -> Tensor:
    """Draw with a student's pipeline.

    Args:
        student: Draws.
        seed: Seed of the noise, which is drawn on the CPU, so that it does not depend on the device.
        options: Further arguments of the pipeline's call.

    Returns:
        ComfyUI's IMAGE: float32, (b, h, w, 3), in [0, 1], on the CPU; the frames of a video one after the other.
    """
    pipeline = student.pipeline
    _make_room(student)
    generator = torch.Generator().manual_seed(seed)
    try:
        with _watched(pipeline.transformer, student.num_steps):
            drawn = pipeline(**options, generator=generator, output_type="np")
    except BaseException:  # an interrupt, too: the parts that were moved to the device go back
        pipeline.maybe_free_model_hooks()
        raise
    images = torch.from_numpy(drawn.frames if hasattr(drawn, "frames") else drawn.images)
    images = images.flatten(0, -4)
    return images if images.shape[-1] == 3 else images.repeat(1, 1, 1, 3)  # a grey image has one channel


def _make_room(student: LoadedStudent) -> None:
    """Let ComfyUI unload what it needs to of its own models, and move the student to the device."""
    device = comfy.model_management.get_torch_device()
    if device.type == "cpu":
        return
    parts = [part for part in student.pipeline.components.values() if isinstance(part, nn.Module)]
    sizes = [_bytes_elsewhere(part, device) for part in parts]
    needed = sum(sizes) if student.memory == KEEP else max(sizes)
    if needed:
        comfy.model_management.free_memory(needed, device)
    if student.memory == KEEP:
        student.pipeline.to(device)


def _bytes_elsewhere(part: nn.Module, device: torch.device) -> int:
    tensors = [*part.parameters(), *part.buffers()]
    return sum(x.nbytes for x in tensors if x.device.type != device.type)


@contextlib.contextmanager
def _watched(transformer: nn.Module, num_steps: int) -> Iterator[None]:
    """Show progress after each step, of one evaluation, and let the user interrupt before each."""
    progress = comfy.utils.ProgressBar(num_steps)

    def before(*_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def after(*_: Any) -> None:
        progress.update(1)

    hooks = [transformer.register_forward_pre_hook(before), transformer.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def size_options(student: LoadedStudent, width: int, height: int, num_frames: int) -> dict[str, int]:
    """Options of the call that choose the size.

    Args:
        student: Draws.
        width: In pixels; 0 for that of the student's training, likewise for the others.
        height: In pixels.
        num_frames: Of a video.

    Raises:
        ValueError: Only one of width and height is given, or the student draws in another way.
    """
    if bool(width) != bool(height):
        raise ValueError(f"expected both width and height, or 0 for both, got {width}x{height}")
    vae, shapes = student.pipeline.vae, student.pipeline.config.student["sample_shapes"]
    own: dict[str, int] = {}
    if shapes:
        *frames, rows, columns = shapes[0][1:]
        edge = 1 if vae is None else pixels_per_latent(vae)
        every = (vae is not None and vae.config.get("scale_factor_temporal")) or 1
        own = {"width": columns * edge, "height": rows * edge}
        if frames:
            own["num_frames"] = (frames[0] - 1) * every + 1
    given = {"width": width, "height": height, "num_frames": num_frames}
    asked = own | {name: value for name, value in given.items() if value}
    known = inspect.signature(student.pipeline.__call__).parameters
    if unknown := [name for name in given if given[name] and name not in known]:
        raise ValueError(f"{type(student.pipeline).__name__} takes no {' and no '.join(unknown)}; leave it at 0")
    exact = {"use_resolution_binning": False} if "use_resolution_binning" in known else {}
    return {name: value for name, value in asked.items() if name in known} | exact


def guidance_options(student: LoadedStudent, scale: float) -> dict[str, float]:
    """Option of the call that sets the guidance scale, of a student that takes one; none where the scale is 0."""
    if not scale:
        return {}
    architecture = architecture_of(student.pipeline.transformer)
    if type(student.pipeline).__name__ in architecture.scale_is_input_of:
        return {"guidance_scale": scale}
    name, off = architecture.guidance_off
    return {name: scale - 1.0 + off}


def class_labels(student: LoadedStudent, words: str) -> list[int]:
    """Classes by number or name, separated by commas or line breaks.

    Raises:
        ValueError: There is none, or one that the student does not know.
    """
    names = getattr(student.pipeline, "labels", None) or {}
    count = student.pipeline.transformer.config.num_embeds_ada_norm
    asked = [word.strip() for word in words.replace("\n", ",").split(",") if word.strip()]
    found = [int(word) if word.isdecimal() else names.get(word, -1) for word in asked]
    wrong = [word for word, label in zip(asked, found, strict=True) if not 0 <= label < count]
    if wrong or not asked:
        known = f"numbers of 0 to {count - 1}" + (" or names of classes" if names else "")
        raise ValueError(f"expected {known}, separated by commas, got {', '.join(wrong) or 'nothing'}")
    return found
