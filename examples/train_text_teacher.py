"""Train the embedded text-to-image teacher (zoo/scenes) and write it as a diffusers folder.

    python examples/train_text_teacher.py --out runs/scenes_teacher

Stable Diffusion 3's transformer and flow matching in pixel space, with two small CLIP text encoders trained alongside.
Scenes are rendered when they are needed, and none is seen twice. The same command again resumes the run. samples.png in
the run folder is drawn at every checkpoint.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from teacher_training import add_options, stratified, train, zero
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from ardistill.evaluation import sample_grid
from ardistill.zoo.scenes.data import CATEGORIES, as_images, caption, prompts, vocabulary
from ardistill.zoo.scenes.teacher.pixel_sd3_pipeline import PixelSD3Pipeline

TEXT_TOKENS = 16
"""Length of a prompt in tokens; the longest caption has 15, begin and end included."""
TEXT_WIDTH = 64
"""Width of each of the two text encoders."""


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding, with merges that turn each word of the scene world into one token."""
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", min_frequency=1, show_progress=False)
    pairs.train_from_iterator(vocabulary(), trainer)
    trained = json.loads(pairs.to_str())["model"]
    letters = [f"{x}{end}" for x in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    pieces = dict.fromkeys(["<|startoftext|>", "<|endoftext|>", *letters, *trained["vocab"]])
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in trained["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_TOKENS)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Two layers: Stable Diffusion 3 takes tokens after the first, the pooled embedding after both."""
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TEXT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)  # CLIP's 0.02 is small next to biases and positions
    return encoder


def make_transformer(width: int = 160, num_layers: int = 6, size: int = 32) -> SD3Transformer2DModel:
    """The teacher's architecture, randomly initialised, with adaLN-Zero as in the DiT paper."""
    patch_size, head_dim = 4, 32
    model = SD3Transformer2DModel(
        sample_size=size,
        patch_size=patch_size,
        in_channels=3,
        out_channels=3,
        num_layers=num_layers,
        num_attention_heads=width // head_dim,
        attention_head_dim=head_dim,
        caption_projection_dim=width,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=size // patch_size,
        qk_norm="rms_norm",
    )
    modulations = [x.linear for block in model.transformer_blocks for x in (block.norm1, block.norm1_context)]
    zero([*modulations, model.norm_out.linear, model.proj_out])
    return model


def make_pipeline(width: int = 160, num_layers: int = 6, tokenizer: CLIPTokenizer | None = None) -> PixelSD3Pipeline:
    """The untrained teacher as a pipeline."""
    tokenizer = tokenizer or make_tokenizer()
    text_encoders = [make_text_encoder(tokenizer) for _ in range(2)]
    transformer, scheduler = make_transformer(width, num_layers), FlowMatchEulerDiscreteScheduler()
    return PixelSD3Pipeline(transformer, scheduler, text_encoders[0], tokenizer, text_encoders[1], tokenizer)


def draw(pipeline: PixelSD3Pipeline, path: Path, guidance_scale: float) -> None:
    """Write a grid of samples, one row per category, from the same noise at every call."""
    columns = 8
    asked = prompts("seen", columns * len(CATEGORIES))
    asked = [x for category in CATEGORIES for x in asked if x.category == category]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [x.text for x in asked],
        guidance_scale=guidance_scale,
        num_inference_steps=16,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    rows = dict(zip(CATEGORIES, (2 * images - 1).split(columns), strict=True))
    sample_grid(rows, path)


def save(pipeline: PixelSD3Pipeline, folder: Path) -> None:
    """Write a diffusers folder with the pipeline's module in it and the transformer in float16."""
    pipeline.save_pretrained(folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: x.half() for name, x in load_file(path).items()}, path, metadata={"format": "pt"})
    module = Path(inspect.getfile(PixelSD3Pipeline))
    shutil.copy(module, folder / module.name)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = [module.stem, PixelSD3Pipeline.__name__]
    index["_sigmas"] = "uniform"  # the pipeline's spacing, which ardistill's solver reads here
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(
        parser, out="runs/scenes_teacher", steps=14000, cooldown=2500, batch_size=64, warmup=300, ema_decay=0.999
    )
    parser.add_argument("--width", type=int, default=160, help="width of the transformer (default: %(default)s)")
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--caption-dropout", type=float, default=0.1)
    parser.add_argument(
        "--time-mean",
        type=float,
        default=1.2,
        help="mean of the times' logits; the layout is settled at times above 0.6",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks: a sixth faster, needs a C++ compiler"
    )
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="guidance scale of samples.png")
    args = parser.parse_args(argv)

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    before = out / "teacher" / "tokenizer"  # kept when a run resumes: a new one could number pieces differently
    known = CLIPTokenizer.from_pretrained(before) if before.is_dir() else None
    pipeline = make_pipeline(args.width, args.num_layers, known)
    pipeline.tokenizer.save_pretrained(before)
    model = nn.ModuleList([pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]).train()
    for block in pipeline.transformer.transformer_blocks if args.compile else []:
        block.compile()

    def on_checkpoint() -> None:
        with torch.compiler.set_stance("force_eager"):  # the grid's batch size is not worth compiling for
            draw(pipeline, out / "samples.png", args.guidance_scale)
        save(pipeline, out / "teacher")

    train(model, lambda step, generator: loss_of(pipeline, step, generator, args), args, on_checkpoint, fused=True)


def loss_of(pipeline: PixelSD3Pipeline, step: int, generator: torch.Generator, args: argparse.Namespace) -> Tensor:
    """Flow-matching loss on fresh scenes and their captions."""
    scenes, captions = zip(*(caption(0, step * args.batch_size + i) for i in range(args.batch_size)), strict=True)
    x0 = as_images(scenes)  # (b, c, h, w)
    dropped = torch.rand(len(x0), generator=generator) < args.caption_dropout
    texts = ["" if drop else x.text for drop, x in zip(dropped, captions, strict=True)]
    tokens = pipeline.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    text_encoders = pipeline.text_encoder, pipeline.text_encoder_2
    encoded = [encoder(tokens, output_hidden_states=True) for encoder in text_encoders]
    # Logit-normal times (Esser et al. 2024, arXiv:2403.03206), stratified.
    quantiles = stratified(len(x0), generator).clamp(1e-4, 1 - 1e-4)
    sigma = (args.time_mean + torch.special.ndtri(quantiles)).sigmoid()
    noise = torch.randn(x0.shape, generator=generator)
    s = sigma.view(-1, 1, 1, 1)
    prediction = pipeline.transformer(
        hidden_states=(1 - s) * x0 + s * noise,
        timestep=1000 * sigma,
        encoder_hidden_states=torch.cat([x.hidden_states[-2] for x in encoded], -1),
        pooled_projections=torch.cat([x.text_embeds for x in encoded], -1),
    ).sample
    return (prediction - (noise - x0)).square().mean()


if __name__ == "__main__":
    main()
