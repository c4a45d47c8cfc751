"""What differs from one architecture to the next, as data: a family is one row, and at most a few small functions.

Latents are what the ODE runs on, (b, c, h, w) or, for video, (b, c, f, h, w). Timesteps are in [0, 1000], noise at
1000. A family says which of the transformer's modules attend, how its forward is called, and how its output reads as a
prediction of the teacher's type; signs and scales are those of the family's own diffusers pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ardistill.core.architecture import Architecture
from ardistill.devices import first_dtype
from ardistill.families.encoding import Condition
from ardistill.families.grids import mu_by_tokens, uniform_grid

_TEXT_WIDTHS = (
    "caption_channels",
    "joint_attention_dim",
    "text_dim",
    "text_embed_dim",
    "cap_feat_dim",
    "cross_attention_dim",
    "context_in_dim",
    "in_text_dim",
    "text_hidden_dim",
)
"""Config keys of the width of a prompt's embedding; where several are there, the first one of these holds."""
_TEXT_LENGTHS = ("text_len", "max_text_seq_length")
"""Config keys of the one length that a prompt's embedding has (HunyuanDiT, CogVideoX)."""
HEAD = ("norm_out.linear", "proj_out")
"""The output layers of most families: adaptive normalisation, then projection."""


def call_plainly(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    """Arguments of a forward that takes latents, timesteps in [0, 1000] and the condition under its own names."""
    return {"hidden_states": latents, "timestep": timestep, **condition}


def take_first(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    """The first output, which already has the shape of the latents."""
    return result[0]


def dtype_of(transformer: Any) -> torch.dtype:
    """The dtype that a transformer computes in; ``transformer.dtype`` walks through all modules to find it."""
    first = first_dtype(transformer)
    return first if first.itemsize > 1 else transformer.dtype  # 8 bits are what weights are stored in


def no_extras(config: Any, count: int, text_tokens: int) -> Condition:
    """No placeholders: the family needs ``encoder_hidden_states`` alone."""
    return {}


def mask_condition(config: Any, count: int, text_tokens: int) -> Condition:
    """An attention mask of the prompts' tokens, which all count."""
    return {"encoder_attention_mask": torch.ones(count, text_tokens, dtype=torch.bool)}


def pooled_condition(config: Any, count: int, text_tokens: int) -> Condition:
    """Pooled embeddings of the prompts."""
    return {"pooled_projections": torch.zeros(count, config.pooled_projection_dim)}


@dataclass(frozen=True, kw_only=True)
class Family(Architecture):
    """How to find the self-attention of a transformer class, how to call it, and what its pipeline does beside."""

    inputs: Callable[[Any, Tensor, Tensor, Condition], dict[str, Any]] = call_plainly
    """(transformer, latents, timestep (b,), condition) -> arguments of its forward."""
    output: Callable[[Any, Any, Tensor], Tensor] = take_first
    """(transformer, result of its forward, latents) -> prediction, shaped as the latents; a learned sigma follows it
    in the channels."""
    on_host: tuple[str, ...] = ()
    """Entries of the condition that ``inputs`` reads as numbers; on a device, each call would wait for them."""
    pipeline: str = ""
    """diffusers' pipeline class of the family, for a teacher whose folder names none."""
    encode: Callable[[Any, list[str]], Condition] | None = None
    """(that pipeline, prompts) -> condition, one row per prompt; None: conditioned on class labels."""
    encode_negative: Callable[[Any, list[str]], Condition] | None = None
    """(that pipeline, negative prompts) -> condition, where negative prompts are encoded otherwise."""
    encodes_to_longest: bool = False
    """Whether the pipeline pads the prompts of a batch to the longest of them and gives no mask."""
    reads_vae: bool = False
    """Whether the pipeline's constructor reads the VAE, so that not even a text encoder runs without one."""
    example_extras: Callable[[Any, int, int], Condition] = no_extras
    """(transformer's config, rows, text tokens) -> placeholders for the tensors that an encoded prompt has besides
    ``encoder_hidden_states``, to count or time a forward without a text encoder."""
    mu: Callable[[Any, tuple[int, ...], int], float] = mu_by_tokens
    """(scheduler's config, shape of the latents, solver steps) -> shift, for schedulers that shift dynamically."""
    grid: Callable[[Any, int], list[float]] = uniform_grid
    """(scheduler, solver steps) -> flow-matching sigmas before the shift, noisiest first, as the family's pipeline
    spaces them; a pipeline may leave the spacing to its scheduler."""
    shift_times: bool = True
    """Whether the network is conditioned on shifted times."""
    result: str = ""
    """Attribute of the pipeline's result that holds images, if not ``images``, or of videos ``frames``."""
    ignores_vae_shift: bool = False
    """Whether the pipeline decodes without the ``shift_factor`` of its VAE."""
    left_out: tuple[str, ...] = ()
    """Components and settings of the pipeline that a student replaces: what guides, or a second transformer. An export
    has none of them."""
    preparation: str = ""
    """Lines of Python, with their ends, that a ``pipeline`` of diffusers needs before it can draw."""
    replaced: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """Component of the pipeline that it cannot do without -> what a student has in its place: a class of diffusers, and
    the options that it is made with."""
    rescale_guided: Callable[[Tensor, Tensor], Tensor] | None = None
    """(guided, conditional) -> guided, where the family's pipeline rescales the guided prediction."""
    channels_key: str = "in_channels"
    """Key of the transformer's config under which it has the number of its input's channels."""
    packing: int = 1
    """Side, in latents, of the square that is packed into one token before the network."""
    default_size: int = 128
    """Height and width of latents where the transformer's config has no ``sample_size``."""
    square: bool = False
    """Whether the class takes only latents that are as high as wide."""
    video: bool = False
    """Whether latents have frames, (b, c, f, h, w)."""
    options: dict[str, Any] = field(default_factory=lambda: {"return_dict": False})
    """Arguments of every call of the transformer besides its inputs."""

    def take_guidance(
        self, transformer: Any, latents: Tensor, condition: Condition, default: float
    ) -> tuple[Condition, Tensor]:
        """The condition as the network takes it, with guidance only where that is its input, and each row's scale.

        Args:
            transformer: A transformer of this family.
            latents: One row per sample.
            condition: One row per sample; not changed.
            default: Guidance scale where the condition names none.
        """
        found = dict(condition)
        guidance = found.pop(
            "guidance", torch.full((len(latents),), float(default), dtype=torch.float32, device=latents.device)
        )
        if self.embeds_guidance(transformer):
            found["guidance"] = guidance
        return found, guidance

    def place(self, condition: Condition, device: torch.device) -> Condition:
        """The condition on a device, except for what is read on the host."""
        on_host = self.on_host
        return {k: x.cpu() if k in on_host else x.to(device, non_blocking=True) for k, x in condition.items()}

    @staticmethod
    def cast(transformer: Any, latents: Tensor, condition: Condition) -> tuple[Tensor, Condition]:
        """Latents and embeddings in the dtype of the transformer's weights; scales and integers keep their dtype.

        Raises:
            ValueError: Autocast is on in another 16-bit dtype than the weights have, which torch cannot mix.
        """
        dtype, kind = dtype_of(transformer), latents.device.type
        if torch.is_autocast_enabled(kind) and dtype in (torch.float16, torch.bfloat16):
            asked = torch.get_autocast_dtype(kind)
            if asked != dtype:
                raise ValueError(
                    f"the weights are {dtype}, autocast asks for {asked}: leave autocast out, or move the weights with "
                    ".to(torch.float32)"
                )
        embeddings = {name: x.to(dtype) for name, x in condition.items() if x.is_floating_point() and x.ndim > 1}
        return latents.to(dtype), condition | embeddings

    def call(self, transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Prediction of the teacher's type, (b, c or 2c, h, w), in the dtype that the transformer computes in."""
        latents, condition = self.cast(transformer, latents, condition)
        arguments = self.inputs(transformer, latents, timestep, condition)
        return self.output(transformer, transformer(**arguments, **self.options), latents)

    def channels(self, transformer: Any) -> int:
        """Number of channels of the transformer's input."""
        return int(transformer.config[self.channels_key])

    def latent_shape(
        self, transformer: Any, height: int | None = None, width: int | None = None, frames: int = 1
    ) -> tuple[int, ...]:
        """Shape of one sample's latents: (c, h, w), for video (c, f, h, w).

        Args:
            transformer: A transformer of this family.
            height: Height in latents, not in pixels; the model's default if not given.
            width: Width in latents, not in pixels; the model's default if not given.
            frames: Number of latent frames of a video, at least; patches in time may need more.
        """
        config = transformer.config
        channels = self.channels(transformer) // self.packing**2
        size = config.get("sample_size") or self.default_size
        high, wide = (config.get(f"sample_{side}") or size for side in ("height", "width"))
        patch = config.get("patch_size_t") or 1
        depth = (-(-frames // patch) * patch,) if self.video else ()
        return (channels, *depth, height or high, width or wide)

    def example_condition(self, transformer: Any, count: int, text_tokens: int = 256) -> Condition:
        """Zeros in the shape of a condition, to count or to time a forward with."""
        config = transformer.config
        if self.encode is None:
            return {"class_labels": torch.zeros(count, dtype=torch.long)}
        text_tokens = next((config[key] for key in _TEXT_LENGTHS if config.get(key)), text_tokens)
        width = next(config[key] for key in _TEXT_WIDTHS if config.get(key))
        width = width[0] if isinstance(width, (tuple, list)) else width  # HiDream: of T5, then of Llama
        example = {"encoder_hidden_states": torch.zeros(count, text_tokens, width)}
        example |= self.example_extras(config, count, text_tokens)
        if self.embeds_guidance(transformer):
            example["guidance"] = torch.ones(count)
        return example
