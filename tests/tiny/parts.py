"""Tokenizers, text encoders, autoencoders and schedulers of the tiny pipelines."""

from __future__ import annotations

import string
from typing import Any

import diffusers
import transformers

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


def word_tokenizer() -> Any:
    """A token each for the words that it knows, and for all others together."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


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


def vae(channels: int = 4, levels: int = 2, width: int = 8, **options: Any) -> Any:
    """Of a factor of 2 to the power of levels - 1; some pipelines take 4 levels for granted."""
    return diffusers.AutoencoderKL(
        block_out_channels=(width,) * levels, norm_num_groups=min(width, 4), latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **options,
    )  # fmt: skip


def trailing_ddim(own: Any) -> Any:
    """A solver of the first order, from pure noise to the image."""
    options = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}
    return diffusers.DDIMScheduler.from_config(own.config, **options)


def euler(own: Any) -> Any:
    """A solver of the first order, where the published one is of a higher order."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=own.config.flow_shift)
