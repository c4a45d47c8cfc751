"""The known architectures, one file each: how their transformers are found, called and conditioned."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from torch import nn

from ardistill.core.architecture import ARCHITECTURES
from ardistill.families import (
    allegro,
    auraflow,
    bria,
    bria_fibo,
    chroma,
    cogvideox,
    cogview3_plus,
    cogview4,
    dit,
    flux,
    flux2,
    hidream,
    hunyuan_dit,
    hunyuan_image,
    hunyuan_video,
    hunyuan_video15,
    kandinsky5,
    krea2,
    longcat_image,
    ltx,
    lumina2,
    lumina_next,
    mochi,
    ovis_image,
    pixart,
    prx,
    qwen_image,
    sana,
    sd3,
    skyreels_v2,
    wan,
    z_image,
)
from ardistill.families.encoding import SEQUENCE_LENGTH as SEQUENCE_LENGTH
from ardistill.families.encoding import Condition as Condition
from ardistill.families.family import Family as Family

FAMILIES: dict[str, Family] = {
    "DiTTransformer2DModel": dit.FAMILY,
    "PixArtTransformer2DModel": pixart.FAMILY,
    "HunyuanDiT2DModel": hunyuan_dit.FAMILY,
    "WanTransformer3DModel": wan.FAMILY,
    "SD3Transformer2DModel": sd3.FAMILY,
    "ZImageTransformer2DModel": z_image.FAMILY,
    "FluxTransformer2DModel": flux.FAMILY,
    "Flux2Transformer2DModel": flux2.FAMILY,
    "AuraFlowTransformer2DModel": auraflow.FAMILY,
    "QwenImageTransformer2DModel": qwen_image.FAMILY,
    "CogView4Transformer2DModel": cogview4.FAMILY,
    "Lumina2Transformer2DModel": lumina2.FAMILY,
    "ChromaTransformer2DModel": chroma.FAMILY,
    "PRXTransformer2DModel": prx.FAMILY,
    "HunyuanImageTransformer2DModel": hunyuan_image.FAMILY,
    "HiDreamImageTransformer2DModel": hidream.FAMILY,
    "Kandinsky5Transformer3DModel": kandinsky5.FAMILY,
    "LongCatImageTransformer2DModel": longcat_image.FAMILY,
    "BriaTransformer2DModel": bria.FAMILY,
    "BriaFiboTransformer2DModel": bria_fibo.FAMILY,
    "OvisImageTransformer2DModel": ovis_image.FAMILY,
    "SanaTransformer2DModel": sana.FAMILY,
    "CogView3PlusTransformer2DModel": cogview3_plus.FAMILY,
    "Krea2Transformer2DModel": krea2.FAMILY,
    "LTXVideoTransformer3DModel": ltx.FAMILY,
    "HunyuanVideoTransformer3DModel": hunyuan_video.FAMILY,
    "CogVideoXTransformer3DModel": cogvideox.FAMILY,
    "SkyReelsV2Transformer3DModel": skyreels_v2.FAMILY,
    "MochiTransformer3DModel": mochi.FAMILY,
    "LuminaNextDiT2DModel": lumina_next.FAMILY,
    "AllegroTransformer3DModel": allegro.FAMILY,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15.FAMILY,
}
"""Transformer class name -> family. `register_family` adds to it."""
ARCHITECTURES.update(FAMILIES)

_DIVIDED = (
    "it attends within each frame and along the frames of each place by turns, and puts frames and places into the "
    "batch axis (LatteTransformer3DModel.forward), where the history has its steps; use a teacher that attends to the "
    "whole video, such as Wan or LTX-Video"
)
UNFIT = {
    "SanaVideoTransformer3DModel": "its self-attention is linear, and SanaLinearAttnProcessor3_0 sums its denominators "
    "by the operator @, which cannot be bound; use a teacher of another family, such as Wan",
    "LatteTransformer3DModel": _DIVIDED,
}
"""Transformer class name -> why it cannot have a history, and what to do."""
UNFIT_PIPELINES = {
    "PRXPixelPipeline": (
        "it starts from noise of scale 2 and reads its network's output as the image; use a teacher of PRXPipeline"
    ),
    "Kandinsky5T2VPipeline": (
        "it draws videos, with positions, masks and sparse attention of its own; use a teacher of Kandinsky5T2IPipeline"
    ),
    "LTXConditionPipeline": (
        "it places a video's frames elsewhere in time than LTXPipeline; use an LTX-Video whose folder names LTXPipeline"
    ),
    "SanaSprintPipeline": "it draws in a few steps itself, on a schedule of its own; use a teacher of SanaPipeline",
    "SkyReelsV2DiffusionForcingPipeline": (
        "it gives each frame a time of its own; use a teacher of SkyReelsV2Pipeline"
    ),
}
"""Pipeline class of a known transformer -> why its folder cannot be a teacher, and what to do."""
_GIVEN = {"image", "video", "mask_image", "control_image", "control_video", "conditions", "cond_image"}
"""Arguments of a pipeline's call by which it draws from more than noise and a prompt or a class."""
_ALSO_WITHOUT = {"Flux2Pipeline", "Flux2KleinPipeline"}
"""Pipelines that take such an argument and are as often called without."""
PUBLISHED_AS = {
    "Transformer2DModel": {
        "ada_norm_zero": "DiTTransformer2DModel",
        "ada_norm_single": "PixArtTransformer2DModel",
    }
}
"""Class name in older published configurations -> their ``norm_type`` -> today's name, as diffusers maps them."""
_REGISTERED: dict[str, type] = {}
"""Class name -> class, of transformers that a user registered."""


def register_family(transformer_class: type, family: Family) -> None:
    """Teach the package another transformer class.

    Args:
        transformer_class: A class of diffusers or your own, derived from diffusers' ``ModelMixin`` and ``ConfigMixin``,
            which load and save it. Its config has ``in_channels``, ``sample_size`` and, for labels, ``num_classes``.
        family: Its row; `Family` documents each field.

    Raises:
        ValueError: The class is known already, or diffusers could not save it.
    """
    name = transformer_class.__name__
    if name in FAMILIES:
        raise ValueError(f"{name} is registered already; give your class another name")
    if not issubclass(transformer_class, diffusers.ModelMixin) or not issubclass(
        transformer_class, diffusers.ConfigMixin
    ):
        raise ValueError(
            f"expected a subclass of diffusers.ModelMixin and diffusers.ConfigMixin, got {name}; derive it from both, "
            "which save and load it"
        )
    FAMILIES[name] = ARCHITECTURES[name] = family
    _REGISTERED[name] = transformer_class


def class_name(config: Mapping[str, Any]) -> str:
    """Today's name of the transformer class that a diffusers configuration describes."""
    name = config["_class_name"]
    return PUBLISHED_AS.get(name, {}).get(config.get("norm_type", ""), name)


def transformer_class(config: Mapping[str, Any] | str) -> Any:
    """The class of a known family that a configuration describes.

    Args:
        config: A diffusers transformer's configuration with its ``_class_name``, or a class name.

    Raises:
        ValueError: No such family is known.
    """
    name = config if isinstance(config, str) else class_name(config)
    family_of(name)
    return _REGISTERED.get(name) or getattr(diffusers, name)


def unfit_pipeline(name: str) -> str | None:
    """Why folders of a pipeline class of diffusers cannot be teachers, and what to do; None if they can.

    Args:
        name: The class; one that diffusers does not have is not judged.
    """
    if name in UNFIT_PIPELINES or name in _ALSO_WITHOUT:
        return UNFIT_PIPELINES.get(name)
    pipeline = getattr(diffusers, name, None)
    given = sorted(_GIVEN & {*inspect.signature(pipeline.__call__).parameters}) if pipeline else []
    if not given:
        return None
    return (
        f"its call takes {given[0]}, which recordings do not hold; use a teacher whose model_index.json names the "
        "pipeline that draws from noise and a prompt alone"
    )


def family_of(transformer: nn.Module | str) -> Family:
    """The family of a transformer or of its class name.

    Raises:
        ValueError: No such family is known.
    """
    name = transformer if isinstance(transformer, str) else type(transformer).__name__
    if name in UNFIT:
        raise ValueError(f"{name} cannot be given a history: {UNFIT[name]}")
    if name not in FAMILIES:
        raise ValueError(
            f"unknown transformer class {name!r}; known: {', '.join(FAMILIES)}; add yours with register_family"
        )
    return FAMILIES[name]
