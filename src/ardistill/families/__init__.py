"""What differs from one architecture to the next, as data: one row a family, and at most one small function each.

Latents are what the ODE runs on, (b, c, h, w) or, for video, (b, c, f, h, w). Timesteps are in [0, 1000], noise at
1000. A family says which of the transformer's modules attend, how its forward is called, and how its output reads as a
prediction of the teacher's type; the signs and scales are those of the family's own diffusers pipeline.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn

from ardistill.core.schedule import scheduler_grid, uniform_grid

Condition = dict[str, Tensor]
"""What the transformer is conditioned on besides the time, one row per sample: for DiT ``class_labels`` (b,), for text
``encoder_hidden_states`` (b, t, d) and what else the family needs. ``guidance`` (b,) may stand among them: the scale
of each row, for the teacher's solver and for students that are told of it."""


def _first(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return result[0]


def _negated(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return -result[0]


def _patches(transformer: Any, hidden_states: Tensor) -> int:
    size = transformer.config.patch_size
    return math.prod(hidden_states.shape[-2:]) // size**2


def _packed(transformer: Any, hidden_states: Tensor) -> int:
    return hidden_states.shape[1]


def _pack(latents: Tensor, size: int) -> Tensor:
    """(b, c, h, w) -> (b, tokens, c size²)."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // size, size, w // size, size).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * size**2)


def _unpack(tokens: Tensor, latents: Tensor, size: int) -> Tensor:
    """(b, tokens, c size²) -> (b, c, h, w), h and w as in ``latents``."""
    b, _, h, w = latents.shape
    return tokens.view(b, h // size, w // size, -1, size, size).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)


def _grid(height: int, width: int, axes: int, device: torch.device) -> Tensor:
    """Positions (height * width, axes): row and column in axes 1 and 2, else 0."""
    ids = torch.zeros(height, width, axes, dtype=torch.float32, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)


def _dit(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    return {"hidden_states": latents, "timestep": timestep, **condition}


def _pixel_size(latents: Tensor, *more: float) -> Tensor:
    """Height and width in pixels of an autoencoder of factor 8, then what follows, one row per sample."""
    height, width = (8.0 * n for n in latents.shape[-2:])
    return torch.tensor([[height, width, *more]], device=latents.device, dtype=latents.dtype).repeat(len(latents), 1)


def _pixart(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    extra: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:
        size = _pixel_size(latents)
        extra = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    return {"hidden_states": latents, "timestep": timestep, "added_cond_kwargs": extra, **condition}


def _centred(height: int, width: int, base: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last corner of a grid scaled to fit in the middle of ``base`` by ``base`` positions."""
    scaled = [round(base * n / max(height, width)) for n in (height, width)]
    first = tuple(round((base - n) / 2) for n in scaled)
    return first, tuple(a + n for a, n in zip(first, scaled, strict=True))  # type: ignore[return-value]


def _hunyuan(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    config = transformer.config
    height, width = (n // config.patch_size for n in latents.shape[-2:])
    corners = _centred(height, width, 64 // config.patch_size)
    rotary = get_2d_rotary_pos_embed(
        config.attention_head_dim, corners, (height, width), device=latents.device, output_type="pt"
    )
    original = torch.full((len(latents), 2), 1024.0, device=latents.device, dtype=latents.dtype)
    size_facts = {
        "image_meta_size": torch.cat([original, _pixel_size(latents, 0.0, 0.0)], dim=1),
        "style": torch.zeros(len(latents), device=latents.device, dtype=torch.long),
    }
    times = timestep.to(latents.dtype)  # the class takes from it the dtype that it embeds time, size and style in
    return {"hidden_states": latents, "timestep": times, "image_rotary_emb": rotary, **size_facts, **condition}


def _z_image(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    text, mask = condition["encoder_hidden_states"], condition.get("encoder_attention_mask")
    rows = [x if mask is None else x[mask[i].bool()] for i, x in enumerate(text)]
    return {"x": list(latents.unsqueeze(2).unbind(0)), "t": 1 - timestep / 1000, "cap_feats": rows}


def _z_image_output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return -torch.stack(list(result[0])).squeeze(2)


def _z_image_tokens(transformer: Any, x: list[Tensor]) -> int:
    size = transformer.config.all_patch_size[0]
    return -(-math.prod(x[0].shape[-2:]) // size**2 // 32) * 32  # padded to a multiple of 32


def _flux(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    height, width = (n // 2 for n in latents.shape[-2:])
    ids = {
        "img_ids": _grid(height, width, 3, latents.device),
        "txt_ids": torch.zeros(
            condition["encoder_hidden_states"].shape[1], 3, dtype=torch.float32, device=latents.device
        ),
    }
    return {"hidden_states": _pack(latents, 2), "timestep": timestep / 1000, **ids, **condition}


def _flux_output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return _unpack(result[0], latents, 2)


def _flux2(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    batch, tokens = condition["encoder_hidden_states"].shape[:2]
    text_ids = torch.zeros(tokens, 4, dtype=torch.float32, device=latents.device)
    text_ids[:, 3] = torch.arange(tokens, device=latents.device)
    image_ids = _grid(latents.shape[-2], latents.shape[-1], 4, latents.device)
    ids = {"img_ids": image_ids.repeat(batch, 1, 1), "txt_ids": text_ids.repeat(batch, 1, 1)}
    return {"hidden_states": _pack(latents, 1), "timestep": timestep / 1000, **ids, **condition}


def _flux2_output(transformer: Any, result: Any, latents: Tensor) -> Tensor:
    return _unpack(result[0], latents, 1)


def _auraflow(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    return {"hidden_states": latents, "timestep": timestep / 1000, **condition}


def _qwen(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    height, width = (n // 2 for n in latents.shape[-2:])
    shapes = [[(1, height, width)]] * len(latents)
    return {"hidden_states": _pack(latents, 2), "timestep": timestep / 1000, "img_shapes": shapes, **condition}


def _cogview4(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    size = _pixel_size(latents)
    facts = {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
    return {"hidden_states": latents, "timestep": timestep, **facts, **condition}


def _lumina2(transformer: Any, latents: Tensor, timestep: Tensor, condition: Condition) -> dict[str, Any]:
    return {"hidden_states": latents, "timestep": 1 - timestep / 1000, **condition}


def _after_prompt(arguments: dict[str, Any]) -> Tensor:
    return arguments["encoder_attention_mask"].sum(1)


def _mu_by_tokens(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Flux and most others, which pack latents by 2 by 2: linear in the image tokens."""
    return _linear_mu(config, math.prod(sample_shape[-2:]) // 4)


def _linear_mu(config: Any, tokens: int) -> float:
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return base + (most - base) / (last - first) * (tokens - first)


def _mu_lumina2(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Its pipeline takes the channels for the tokens, and its checkpoints are used so."""
    return _linear_mu(config, sample_shape[0])


def _mu_flux2(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Two lines in the image tokens, fitted at 10 and at 200 steps, and between them linear in the steps."""
    tokens = math.prod(sample_shape[-2:])
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return at_200 + slope * (num_steps - 200)


def _mu_cogview4(config: Any, sample_shape: tuple[int, ...], num_steps: int) -> float:
    """Follows the side of the image instead of its area."""
    tokens = math.prod(sample_shape[-2:]) // 4
    base, most = config.get("base_shift", 0.25), config.get("max_shift", 0.75)
    return base + most * math.sqrt(tokens / config.get("base_image_seq_len", 256))


def _grid_cogview4(scheduler: Any, num_steps: int) -> list[float]:
    """Whole timesteps from the last one to 1."""
    last = scheduler.config.num_train_timesteps
    return [int(last + (1 - last) * i / max(num_steps - 1, 1)) / last for i in range(num_steps)]


SEQUENCE_LENGTH = "_max_sequence_length"
"""Key in a loaded pipeline's config of its folder's ``max_sequence_length``; diffusers takes public keys for parts."""


def _encode(pipeline: Any, *prompts: Any, **options: Any) -> Any:
    """The pipeline's ``encode_prompt``, with the sequence length of its folder, else that of its call by default."""
    default = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    if default is not None:
        options["max_sequence_length"] = pipeline.config.get(SEQUENCE_LENGTH, default.default)
    if "do_classifier_free_guidance" in inspect.signature(pipeline.encode_prompt).parameters:
        options["do_classifier_free_guidance"] = False
    return pipeline.encode_prompt(*prompts, **options)


def _encode_plain(pipeline: Any, prompts: list[str]) -> Condition:
    """Embeddings of a fixed length, without a mask."""
    return {"encoder_hidden_states": _encode(pipeline, prompts)[0]}


def _encode_masked(pipeline: Any, prompts: list[str]) -> Condition:
    embeddings, mask = _encode(pipeline, prompts)[:2]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


def _encode_hunyuan(pipeline: Any, prompts: list[str]) -> Condition:
    condition: Condition = {}
    for index, suffix in ((0, ""), (1, "_t5")):  # BERT and T5
        found = _encode(pipeline, prompts, text_encoder_index=index)
        condition[f"encoder_hidden_states{suffix}"], condition[f"text_embedding_mask{suffix}"] = found[0], found[2]
    return condition


def _encode_sd3(pipeline: Any, prompts: list[str]) -> Condition:
    found = _encode(pipeline, prompts, None, None)
    return {"encoder_hidden_states": found[0], "pooled_projections": found[2]}


def _encode_flux(pipeline: Any, prompts: list[str]) -> Condition:
    found = _encode(pipeline, prompts, None)
    return {"encoder_hidden_states": found[0], "pooled_projections": found[1]}


def _encode_qwen(pipeline: Any, prompts: list[str]) -> Condition:
    embeddings, mask = _encode(pipeline, prompts)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device) if mask is None else mask
    return {"encoder_hidden_states": embeddings, "encoder_hidden_states_mask": mask}


def _encode_z_image(pipeline: Any, prompts: list[str]) -> Condition:
    rows = _encode(pipeline, prompts)[0]
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(x), dtype=torch.bool, device=x.device) for x in rows], True)
    return {"encoder_hidden_states": nn.utils.rnn.pad_sequence(rows, True), "encoder_attention_mask": mask}


def _encode_lumina2_negative(pipeline: Any, prompts: list[str]) -> Condition:
    """As its pipeline: without the system prompt."""
    found = pipeline.encode_prompt(prompts, do_classifier_free_guidance=True, negative_prompt=prompts)
    return {"encoder_hidden_states": found[2], "encoder_attention_mask": found[3]}


def _norm_of_conditional(guided: Tensor, conditional: Tensor) -> Tensor:
    """As Lumina2's pipeline: guidance keeps the norm of each row of latents."""
    return guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


def _norm_of_conditional_tokens(guided: Tensor, conditional: Tensor) -> Tensor:
    """As Qwen-Image's pipeline: guidance keeps the norm of each token."""
    return _unpack(_norm_of_conditional(_pack(guided, 2), _pack(conditional, 2)), guided, 2)


@dataclass(frozen=True)
class Family:
    """How to find the self-attention of a transformer class and how to call it."""

    block_lists: tuple[str, ...]
    """Attributes that hold the blocks, in the order they run."""
    attention: tuple[str, ...]
    """Self-attention of a block; the second of a pair may be absent."""
    head: tuple[str, ...]
    """The linear layers after the last block: what the direct output has once per step."""
    inputs: Callable[[Any, Tensor, Tensor, Condition], dict[str, Any]] = _dit
    """(transformer, latents, timestep (b,), condition) -> arguments of its forward."""
    output: Callable[[Any, Any, Tensor], Tensor] = _first
    """(transformer, what its forward returned, latents) -> prediction, as latents; a learned sigma behind it."""
    text: str = ""
    """Where text keys stand in joint attention: ``first``, ``last``, or nowhere. History has image keys only."""
    image_tokens: Callable[[Any, Any], int] = _patches
    """(transformer, first argument of its forward) -> image tokens of a sample; asked only where there is text."""
    image_start: Callable[[dict[str, Any]], Tensor] | None = None
    """(arguments of its forward) -> where each row's image begins, where prompts of unequal length shift it."""
    pipeline: str = ""
    """diffusers' pipeline class of the family, for a teacher whose folder names none."""
    encode: Callable[[Any, list[str]], Condition] | None = None
    """(that pipeline, prompts) -> condition, one row per prompt; None: conditioned on class labels."""
    encode_negative: Callable[[Any, list[str]], Condition] | None = None
    """Same, of negative prompts, where they are encoded otherwise."""
    encodes_to_longest: bool = False
    """Whether the pipeline pads the prompts of a batch to the longest of them and gives no mask."""
    mu: Callable[[Any, tuple[int, ...], int], float] = _mu_by_tokens
    """(scheduler's config, shape of the latents, solver steps) -> shift, for schedulers that shift dynamically."""
    grid: Callable[[Any, int], list[float]] = uniform_grid
    """(scheduler, solver steps) -> flow-matching sigmas before they are shifted, noisiest first: as the family's
    pipeline spaces them, which may leave it to its scheduler."""
    shift_times: bool = True
    """Whether the network is told shifted times."""
    rescale_guided: Callable[[Tensor, Tensor], Tensor] | None = None
    """(guided, conditional) -> guided, where the family's pipeline rescales what guidance gives."""
    packing: int = 1
    """Latents are packed into tokens of so many by so many before the network."""
    default_size: int = 128
    """Height and width of latents where the transformer's config has no ``sample_size``."""
    square: bool = False
    """Whether the class takes latents as high as wide alone."""
    time_embedding: str = "timestep_embedder"
    """How the names of the modules that embed the time end: a student that is told of the guidance adds it there."""
    has_checkpointing: bool = True
    """Whether the class has gradient checkpointing."""
    options: dict[str, Any] = field(default_factory=lambda: {"return_dict": False})
    """What every call of the transformer is given besides its inputs."""

    def blocks(self, transformer: nn.Module) -> list[list[nn.Module]]:
        """Self-attention modules of every block, lowest first."""
        found = []
        for name in self.block_lists:
            for block in getattr(transformer, name):
                modules = [getattr(block, attention, None) for attention in self.attention]
                found.append([module for module in modules if module is not None])
        return found

    @staticmethod
    def embeds_guidance(transformer: Any) -> bool:
        """Whether guidance is an input of the network (Flux-dev): then there is no unguided branch."""
        return bool(transformer.config.get("guidance_embeds", False))

    def take_guidance(
        self, transformer: Any, latents: Tensor, condition: Condition, default: float
    ) -> tuple[Condition, Tensor]:
        """The condition as the network takes it, with guidance only where that is its input, and each row's scale.

        Args:
            transformer: Of this family.
            latents: One row per sample.
            condition: One row per sample; not changed.
            default: Scale where the condition names none.
        """
        found = dict(condition)
        guidance = found.pop(
            "guidance", torch.full((len(latents),), float(default), dtype=torch.float32, device=latents.device)
        )
        if self.embeds_guidance(transformer):
            found["guidance"] = guidance
        return found, guidance

    @staticmethod
    def cast(transformer: Any, latents: Tensor, condition: Condition) -> tuple[Tensor, Condition]:
        """Latents and embeddings in the dtype of the weights that they meet; scales and integers stay as they are.

        Raises:
            ValueError: Autocast is on in another 16-bit dtype than the weights have, which torch cannot mix.
        """
        dtype, kind = transformer.dtype, latents.device.type
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

    def latent_shape(
        self, transformer: Any, height: int | None = None, width: int | None = None, frames: int = 1
    ) -> tuple[int, ...]:
        """Shape of one sample's latents: (c, h, w), for video (c, f, h, w); all counted in latents."""
        config = transformer.config
        channels = config.in_channels // self.packing**2
        size = config.get("sample_size") or self.default_size
        depth = (frames,) if isinstance(config.get("patch_size"), (tuple, list)) else ()
        return (channels, *depth, height or size, width or size)

    def example_condition(self, transformer: Any, count: int, text_tokens: int = 256) -> Condition:
        """Zeros in the shape of a condition, to count or to time a forward with."""
        config = transformer.config
        if self.encode is None:
            return {"class_labels": torch.zeros(count, dtype=torch.long)}
        text_tokens = config.get("text_len") or text_tokens  # HunyuanDiT knows one length
        width = next(config[key] for key in _TEXT_WIDTHS if config.get(key))
        example = {"encoder_hidden_states": torch.zeros(count, text_tokens, width)}
        if self.encode in (_encode_sd3, _encode_flux):
            example["pooled_projections"] = torch.zeros(count, config.pooled_projection_dim)
        if self.encode is _encode_masked:
            example["encoder_attention_mask"] = torch.ones(count, text_tokens, dtype=torch.bool)
        if self.encode is _encode_hunyuan:
            example["text_embedding_mask"] = torch.ones(count, text_tokens, dtype=torch.long)
            example["encoder_hidden_states_t5"] = torch.zeros(count, config.text_len_t5, config.cross_attention_dim_t5)
            example["text_embedding_mask_t5"] = torch.ones(count, config.text_len_t5, dtype=torch.long)
        if self.embeds_guidance(transformer):
            example["guidance"] = torch.ones(count)
        return example

    def place_image(self, transformer: Any, arguments: dict[str, Any]) -> tuple[int | None, Tensor | None]:
        """Image tokens of a sample, and where they begin in each row if not in all rows alike.

        Neither where attention sees nothing else.
        """
        if not self.text:
            return None, None
        return self.image_tokens(transformer, next(iter(arguments.values()))), (
            self.image_start and self.image_start(arguments)
        )


_TEXT_WIDTHS = (
    "caption_channels",
    "joint_attention_dim",
    "text_dim",
    "text_embed_dim",
    "cap_feat_dim",
    "cross_attention_dim",
)
"""Config keys of the width of a prompt's embedding, the more telling first."""
_HEAD = ("norm_out.linear", "proj_out")
FAMILIES: dict[str, Family] = {
    "DiTTransformer2DModel": Family(
        ("transformer_blocks",), ("attn1",), ("proj_out_1", "proj_out_2"), pipeline="DiTPipeline", square=True
    ),
    "PixArtTransformer2DModel": Family(
        ("transformer_blocks",),
        ("attn1",),
        ("proj_out",),
        _pixart,
        pipeline="PixArtSigmaPipeline",
        encode=_encode_masked,
    ),
    "HunyuanDiT2DModel": Family(
        ("blocks",),
        ("attn1",),
        _HEAD,
        _hunyuan,
        has_checkpointing=False,
        pipeline="HunyuanDiTPipeline",
        encode=_encode_hunyuan,
    ),
    "WanTransformer3DModel": Family(
        ("blocks",),
        ("attn1",),
        ("proj_out",),
        pipeline="WanPipeline",
        encode=_encode_plain,
        default_size=60,
        time_embedding="time_embedder",
        grid=scheduler_grid,
    ),
    "SD3Transformer2DModel": Family(
        ("transformer_blocks",),
        ("attn", "attn2"),
        _HEAD,
        text="last",
        pipeline="StableDiffusion3Pipeline",
        encode=_encode_sd3,
        grid=scheduler_grid,
    ),
    "ZImageTransformer2DModel": Family(
        ("layers",),
        ("attention",),
        ("all_final_layer.2-1.linear",),
        _z_image,
        _z_image_output,
        "last",
        _z_image_tokens,
        pipeline="ZImagePipeline",
        encode=_encode_z_image,
        time_embedding="t_embedder",
    ),
    "FluxTransformer2DModel": Family(
        ("transformer_blocks", "single_transformer_blocks"),
        ("attn",),
        _HEAD,
        _flux,
        _flux_output,
        "first",
        _packed,
        pipeline="FluxPipeline",
        encode=_encode_flux,
        packing=2,
    ),
    "Flux2Transformer2DModel": Family(
        ("transformer_blocks", "single_transformer_blocks"),
        ("attn",),
        _HEAD,
        _flux2,
        _flux2_output,
        "first",
        _packed,
        pipeline="Flux2Pipeline",
        encode=_encode_plain,
        mu=_mu_flux2,
        default_size=64,
    ),
    "AuraFlowTransformer2DModel": Family(
        ("joint_transformer_blocks", "single_transformer_blocks"),
        ("attn",),
        _HEAD,
        _auraflow,
        text="first",
        pipeline="AuraFlowPipeline",
        encode=_encode_plain,
        grid=scheduler_grid,
        time_embedding="time_step_proj",
    ),
    "QwenImageTransformer2DModel": Family(
        ("transformer_blocks",),
        ("attn",),
        _HEAD,
        _qwen,
        _flux_output,
        "first",
        _packed,
        pipeline="QwenImagePipeline",
        encode=_encode_qwen,
        rescale_guided=_norm_of_conditional_tokens,
        packing=2,
    ),
    "CogView4Transformer2DModel": Family(
        ("transformer_blocks",),
        ("attn1",),
        _HEAD,
        _cogview4,
        text="first",
        pipeline="CogView4Pipeline",
        encode=_encode_plain,
        encodes_to_longest=True,
        mu=_mu_cogview4,
        grid=_grid_cogview4,
        shift_times=False,
    ),
    "Lumina2Transformer2DModel": Family(
        ("layers",),
        ("attn",),
        ("norm_out.linear_1", "norm_out.linear_2"),
        _lumina2,
        _negated,
        "first",
        image_start=_after_prompt,
        mu=_mu_lumina2,
        pipeline="Lumina2Pipeline",
        encode=_encode_masked,
        encode_negative=_encode_lumina2_negative,
        rescale_guided=_norm_of_conditional,
    ),
}
"""Class name -> family. `register_family` adds to it."""


_LINEAR = (
    "its self-attention is linear, it makes no call of scaled_dot_product_attention; use a teacher of a family with "
    "softmax attention, such as PixArt or SD3"
)
UNFIT = {"SanaTransformer2DModel": _LINEAR, "SanaVideoTransformer3DModel": _LINEAR}
"""Class name -> why, and what to do."""


_OWN: dict[str, type] = {}


def register_family(transformer_class: type, family: Family) -> None:
    """Teach the package another transformer class.

    Args:
        transformer_class: Of diffusers or your own; derived from diffusers' ``ModelMixin`` and ``ConfigMixin``, which
            load and save it. Its config has ``in_channels``, ``sample_size`` and, for labels, ``num_classes``.
        family: Its row; `Family` says what each field means.

    Raises:
        ValueError: The class is known already, or diffusers could not save it.
    """
    name = transformer_class.__name__
    if name in FAMILIES:
        raise ValueError(f"{name} is registered already")
    if not issubclass(transformer_class, diffusers.ModelMixin) or not issubclass(
        transformer_class, diffusers.ConfigMixin
    ):
        raise ValueError(f"expected a subclass of diffusers.ModelMixin and diffusers.ConfigMixin, got {name}")
    FAMILIES[name] = family
    _OWN[name] = transformer_class


PUBLISHED_AS = {
    "Transformer2DModel": {
        "ada_norm_zero": "DiTTransformer2DModel",
        "ada_norm_single": "PixArtTransformer2DModel",
    }
}
"""Class name in older published configurations -> their ``norm_type`` -> today's name, as diffusers maps them."""


def class_name(config: Mapping[str, Any]) -> str:
    """Today's name of the transformer class that a diffusers configuration is of."""
    name = config["_class_name"]
    return PUBLISHED_AS.get(name, {}).get(config.get("norm_type", ""), name)


def transformer_class(config: Mapping[str, Any] | str) -> Any:
    """The class of a known family that a configuration is of.

    Args:
        config: A diffusers transformer's configuration with its ``_class_name``, or a class name.

    Raises:
        ValueError: No such family is known.
    """
    name = config if isinstance(config, str) else class_name(config)
    family_of(name)
    return _OWN.get(name) or getattr(diffusers, name)


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
