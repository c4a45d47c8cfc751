"""The node classes: two loaders and two samplers."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from .students import (
    MEMORY,
    PRECISIONS,
    LoadedStudent,
    class_labels,
    draw,
    guidance_options,
    load_student,
    size_options,
    student_folders,
)

STUDENT = "ARDISTILL_STUDENT"
"""Type of the link between a loader and a sampler."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[^@:\s]+)?")
PRECISION = (
    [*PRECISIONS],
    {"tooltip": "What the weights are kept and used in; auto: bfloat16 on CUDA, float32 elsewhere."},
)
WHERE = (
    [*MEMORY],
    {"tooltip": "Where the weights are between runs: on the device, or in main memory; the second is slower."},
)
SEED = (
    "INT",
    {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True, "tooltip": "Of the noise."},
)
GUIDANCE = (
    "FLOAT",
    {
        "default": 0.0,
        "min": 0.0,
        "max": 100.0,
        "step": 0.1,
        "tooltip": "For a student that takes the guidance scale as its input; 0: the middle of its range.",
    },
)


class LoadStudent:
    """Loads a student from a folder below ``models/diffusers``."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A folder below models/diffusers that ardistill export wrote."
        return {
            "required": {
                "student": ([*sorted(student_folders())], {"tooltip": tooltip}),
                "precision": PRECISION,
                "memory": WHERE,
            }
        }

    RETURN_TYPES = (STUDENT,)
    RETURN_NAMES = ("student",)
    FUNCTION = "load"
    CATEGORY = "ardistill"
    DESCRIPTION = "Loads a few-step student that ardistill exported. Nothing of its folder is executed."

    @classmethod
    def IS_CHANGED(cls, student: str, precision: str, memory: str) -> Any:
        """When the folder was written: an export under the same name is loaded anew."""
        return (student_folders()[student] / "model_index.json").stat().st_mtime_ns

    def load(self, student: str, precision: str, memory: str) -> tuple[LoadedStudent]:
        return (load_student(student_folders()[student], precision, memory),)


class LoadStudentFromHub:
    """Loads a student from the Hub; it is downloaded once."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "OWNER/NAME, or OWNER/NAME@REVISION."
        return {
            "required": {
                "hub_id": ("STRING", {"default": "", "tooltip": tooltip}),
                "precision": PRECISION,
                "memory": WHERE,
            }
        }

    RETURN_TYPES = (STUDENT,)
    RETURN_NAMES = ("student",)
    FUNCTION = "load"
    CATEGORY = "ardistill"
    DESCRIPTION = "Downloads a few-step student that ardistill exported. Nothing of its files is executed."

    @classmethod
    def VALIDATE_INPUTS(cls, hub_id: str | None) -> bool | str:
        if hub_id is None or HUB_ID.fullmatch(hub_id):  # None: it comes by a link and is not known yet
            return True
        return f"expected the id of a student on the Hub, OWNER/NAME or OWNER/NAME@REVISION, got {hub_id!r}"

    def load(self, hub_id: str, precision: str, memory: str) -> tuple[LoadedStudent]:
        return (load_student(hub_id, precision, memory),)


class SampleText:
    """Draws images of a prompt."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": 16384, "step": 8, "tooltip": "0: as the student was trained."}
        frames = {"default": 0, "min": 0, "max": 4096, "tooltip": "Of a video; 0: as the student was trained."}
        return {
            "required": {
                "student": (STUDENT,),
                "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True, "default": ""}),
                "seed": SEED,
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 64}),
                "width": ("INT", side),
                "height": ("INT", side),
            },
            "optional": {"num_frames": ("INT", frames), "guidance_scale": GUIDANCE},
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "sample"
    CATEGORY = "ardistill"
    DESCRIPTION = "Draws images of a prompt in the student's few steps; each step attends to all earlier ones."

    def sample(
        self,
        student: LoadedStudent,
        prompt: str,
        seed: int,
        batch_size: int,
        width: int,
        height: int,
        num_frames: int = 0,
        guidance_scale: float = 0.0,
    ) -> tuple[Tensor]:
        if not student.takes_text:
            raise ValueError("this student draws classes, not prompts; use the node Sample classes")
        options = size_options(student, width, height, num_frames) | guidance_options(student, guidance_scale)
        return (draw(student, seed, {"prompt": [prompt] * batch_size} | options),)


class SampleClasses:
    """Draws images of classes."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "Numbers or names of classes, separated by commas."
        return {
            "required": {
                "student": (STUDENT,),
                "classes": ("STRING", {"default": "0", "tooltip": tooltip}),
                "seed": SEED,
                "images_per_class": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {"guidance_scale": GUIDANCE},
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "sample"
    CATEGORY = "ardistill"
    DESCRIPTION = "Draws images of classes in the student's few steps; each step attends to all earlier ones."

    def sample(
        self,
        student: LoadedStudent,
        classes: str,
        seed: int,
        images_per_class: int,
        guidance_scale: float = 0.0,
    ) -> tuple[Tensor]:
        if student.takes_text:
            raise ValueError("this student draws prompts, not classes; use the node Sample text")
        labels = [label for label in class_labels(student, classes) for _ in range(images_per_class)]
        return (draw(student, seed, {"class_labels": labels} | guidance_options(student, guidance_scale)),)


NODE_CLASS_MAPPINGS = {
    "ARDistillLoadStudent": LoadStudent,
    "ARDistillLoadStudentFromHub": LoadStudentFromHub,
    "ARDistillSampleText": SampleText,
    "ARDistillSampleClasses": SampleClasses,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ARDistillLoadStudent": "Load student (ardistill)",
    "ARDistillLoadStudentFromHub": "Load student from the Hub (ardistill)",
    "ARDistillSampleText": "Sample text (ardistill)",
    "ARDistillSampleClasses": "Sample classes (ardistill)",
}
