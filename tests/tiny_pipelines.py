"""Tiny randomly initialised pipelines of the real classes, saved to disk: what a user's teacher looks like."""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tiny_families import TINY

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
WORDS = ["a", "red", "cat", "dog", "on", "the", "moon", "photo", "of"]


def clip_tokenizer() -> Any:
    specials = ["<|startoftext|>", "<|endoftext|>"]
    pieces = specials + [c for c in string.ascii_lowercase] + [f"{c}</w>" for c in string.ascii_lowercase]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12)


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *string.ascii_lowercase]
    return transformers.T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=12)


def byte_tokenizer(**options: Any) -> Any:
    """Qwen's, of single bytes: no merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    letters = sorted(ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters])}
    return Qwen2Tokenizer(vocab=vocab, merges=[], **options)


def clip_encoder(width: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=60, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return config


def t5_encoder(width: int) -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=60, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )


def vae(channels: int = 4, levels: int = 2, **options: Any) -> Any:
    """Of a factor of 2 to the power of levels - 1; some pipelines take 4 levels for granted."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * levels, norm_num_groups=4, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **options,
    )  # fmt: skip


def _dit() -> Any:
    parts = {"vae": vae(), "scheduler": diffusers.DDIMScheduler()}
    return diffusers.DiTPipeline(transformer=TINY["dit"].transformer(), **parts)


def _pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        t5_tokenizer(),
        t5_encoder(12),
        vae(),
        TINY["pixart-sigma"].transformer(),
        diffusers.DPMSolverMultistepScheduler(),
    )


def _sd3() -> Any:
    clip = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        TINY["sd3"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(shift_factor=0.06),
        clip(clip_encoder(4)),
        clip_tokenizer(),
        clip(clip_encoder(6)),
        clip_tokenizer(),
        t5_encoder(12),
        t5_tokenizer(),
    )


def _flux() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return diffusers.FluxPipeline(
        scheduler,
        vae(shift_factor=0.06),
        transformers.CLIPTextModel(clip_encoder(10)),
        clip_tokenizer(),
        t5_encoder(12),
        t5_tokenizer(),
        TINY["flux"].transformer(),
    )


def _qwen() -> Any:
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1] * 4, latents_std=[1.5] * 4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return diffusers.QwenImagePipeline(
        scheduler, autoencoder, encoder, byte_tokenizer(), TINY["qwen-image"].transformer()
    )


def _z_image() -> Any:
    config = transformers.Qwen3Config(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    return diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(shift_factor=0.06),
        transformers.Qwen3Model(config),
        tokenizer,
        TINY["z-image"].transformer(),
    )


def _wan() -> Any:
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1] * 4, latents_std=[1.5] * 4,
    )  # fmt: skip
    config = transformers.UMT5Config(vocab_size=60, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return diffusers.WanPipeline(
        t5_tokenizer(),
        transformers.UMT5EncoderModel(config),
        autoencoder,
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        TINY["wan"].transformer(),
    )


def _hunyuan() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    bert = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    tiny = TINY["hunyuandit"]
    return diffusers.HunyuanDiTPipeline(
        vae(levels=4),
        transformers.BertModel(bert),
        transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=77),
        replace(tiny, options=tiny.options | {"text_len": 77, "text_len_t5": 256}).transformer(),
        diffusers.DDPMScheduler(prediction_type="v_prediction"),
        None,
        None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(16),
        tokenizer_2=t5_tokenizer(),
    )


def _flux2() -> Any:
    """Klein: its text encoder is the smaller one."""
    config = transformers.Qwen3Config(
        vocab_size=300, hidden_size=4, intermediate_size=8, num_hidden_layers=28, num_attention_heads=1,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    torch.nn.init.uniform_(autoencoder.bn.running_var, 0.5, 2.0)
    tiny = TINY["flux2"]
    return diffusers.Flux2KleinPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        autoencoder,
        transformers.Qwen3ForCausalLM(config),
        byte_tokenizer(chat_template=TEMPLATE),
        replace(tiny, options=tiny.options | {"guidance_embeds": False}).transformer(),
    )


def _auraflow() -> Any:
    config = transformers.UMT5Config(vocab_size=60, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return diffusers.AuraFlowPipeline(
        t5_tokenizer(),
        transformers.UMT5EncoderModel(config),
        vae(),
        TINY["auraflow"].transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def _cogview4() -> Any:
    config = transformers.GlmConfig(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(
        t5_tokenizer(), transformers.GlmModel(config), vae(levels=4), TINY["cogview4"].transformer(), scheduler
    )


def _lumina2() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=300, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    tiny = TINY["lumina2"]
    return diffusers.Lumina2Pipeline(
        replace(tiny, options=tiny.options | {"axes_lens": (300, 16, 16)}).transformer(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae(levels=4, shift_factor=0.06),  # the pipeline takes a factor of 8 for granted
        transformers.Gemma2Model(config),
        byte_tokenizer(),
    )


PIPELINES = {
    "dit": _dit,
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "qwen-image": _qwen,
    "z-image": _z_image,
    "wan": _wan,
    "hunyuandit": _hunyuan,
    "flux2": _flux2,
    "auraflow": _auraflow,
    "cogview4": _cogview4,
    "lumina2": _lumina2,
}


def save(name: str, folder: Path) -> Path:
    """Make and save one; the folder is what a Hub id downloads to."""
    torch.manual_seed(0)
    PIPELINES[name]().save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Save a CLIP with its tokenizer and image processor, what a scorer's Hub id downloads to."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 60, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"image_size": 16, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=sizes | text, vision_config=sizes | vision, projection_dim=8)
    pictures = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(pictures, clip_tokenizer()).save_pretrained(folder)
    return folder
