"""Train the embedded text-to-image teacher (zoo/scenes) and write it as a diffusers folder.

    python examples/train_text_teacher.py --out runs/scenes_teacher

Stable Diffusion 3's transformer and flow matching in pixel space, and two small CLIP text encoders trained with it.
Scenes are rendered as they are needed, none is seen twice. The same command again resumes the run; the learning rate
is constant and falls to zero over the last --cooldown steps. samples.png in the run folder shows how far it is.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import time
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from ardistill.evaluation import sample_grid
from ardistill.zoo.scenes.data import CATEGORIES, as_images, caption, prompts, vocabulary
from ardistill.zoo.scenes.teacher.pixel_sd3_pipeline import PixelSD3Pipeline

TEXT_TOKENS = 16
"""The longest caption has 15, begin and end included."""
TEXT_WIDTH = 64
"""Of each of the two text encoders."""


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding, with the merges that make one token of each word of the scene world."""
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
    """Two layers, of which Stable Diffusion 3 takes the first for its tokens and both for the pooled embedding."""
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
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)  # CLIP's 0.02 is less than biases and positions
    return encoder


def make_transformer(width: int = 160, num_layers: int = 6, size: int = 32) -> SD3Transformer2DModel:
    """The teacher's architecture, randomly initialised, zero-initialised as in the DiT paper (adaLN-Zero)."""
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
    for layer in (*modulations, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def make_pipeline(width: int = 160, num_layers: int = 6, tokenizer: CLIPTokenizer | None = None) -> PixelSD3Pipeline:
    """The teacher, untrained."""
    tokenizer = tokenizer or make_tokenizer()
    text_encoders = [make_text_encoder(tokenizer) for _ in range(2)]
    transformer, scheduler = make_transformer(width, num_layers), FlowMatchEulerDiscreteScheduler()
    return PixelSD3Pipeline(transformer, scheduler, text_encoders[0], tokenizer, text_encoders[1], tokenizer)


def draw(pipeline: PixelSD3Pipeline, path: Path, guidance_scale: float) -> None:
    """A grid of samples, a row each category, the same noise at every call."""
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
    """Write a diffusers folder that holds its pipeline's module, the transformer in float16."""
    pipeline.save_pretrained(folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: x.half() for name, x in load_file(path).items()}, path, metadata={"format": "pt"})
    module = Path(inspect.getfile(PixelSD3Pipeline))
    shutil.copy(module, folder / module.name)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = [module.stem, PixelSD3Pipeline.__name__]
    index["_sigmas"] = "uniform"  # as its pipeline spaces them; ardistill's solver follows
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/scenes_teacher", help="run folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=14000, help="optimiser steps (default: %(default)s)")
    parser.add_argument(
        "--cooldown", type=int, default=2500, help="last steps with falling rate (default: %(default)s)"
    )
    parser.add_argument("--width", type=int, default=160, help="of the transformer (default: %(default)s)")
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--caption-dropout", type=float, default=0.1)
    parser.add_argument(
        "--time-mean", type=float, default=1.2, help="of the times' logits; what is drawn where is settled above 0.6"
    )
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks: a sixth faster, needs a C++ compiler"
    )
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of the samples drawn on the way")
    args = parser.parse_args(argv)

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    checkpoint, start = out / "checkpoint.pt", 0
    before = out / "teacher" / "tokenizer"  # made anew, pieces that are as frequent would change places
    known = CLIPTokenizer.from_pretrained(before) if before.is_dir() else None
    pipeline = make_pipeline(args.width, args.num_layers, known)
    pipeline.tokenizer.save_pretrained(before)
    tokenizer, transformer = pipeline.tokenizer, pipeline.transformer
    text_encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
    model = nn.ModuleList([transformer, *text_encoders]).train()
    for block in transformer.transformer_blocks if args.compile else []:
        block.compile()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = EMAModel(model.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)

    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        start = saved["step"]

    began, loss_mean = time.time(), None
    for step in (bar := tqdm(range(start, args.steps), initial=start, total=args.steps, mininterval=10)):
        rate = min(1.0, (step + 1) / args.warmup, (args.steps - step) / args.cooldown)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        generator = torch.Generator().manual_seed(step)
        scenes, captions = zip(*(caption(0, step * args.batch_size + i) for i in range(args.batch_size)), strict=True)
        x0 = as_images(scenes)  # (b, c, h, w)
        dropped = torch.rand(len(x0), generator=generator) < args.caption_dropout
        texts = ["" if drop else x.text for drop, x in zip(dropped, captions, strict=True)]
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        encoded = [encoder(tokens, output_hidden_states=True) for encoder in text_encoders]
        # Logit-normal times (Esser et al. 2024, arXiv:2403.03206), one per stratum: the loss varies strongly with time.
        stratified = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
        sigma = (args.time_mean + torch.special.ndtri(stratified.clamp(1e-4, 1 - 1e-4))).sigmoid()
        noise = torch.randn(x0.shape, generator=generator)
        s = sigma.view(-1, 1, 1, 1)
        prediction = transformer(
            hidden_states=(1 - s) * x0 + s * noise,
            timestep=1000 * sigma,
            encoder_hidden_states=torch.cat([x.hidden_states[-2] for x in encoded], -1),
            pooled_projections=torch.cat([x.text_embeds for x in encoded], -1),
        ).sample
        loss = (prediction - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())
        loss_mean = loss.item() if loss_mean is None else 0.99 * loss_mean + 0.01 * loss.item()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss_mean:.4f}")
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"ema": ema.state_dict(), "step": step + 1}, out / "checkpoint.tmp")
            os.replace(out / "checkpoint.tmp", checkpoint)
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": step + 1, "loss": loss_mean, "seconds": time.time() - began}) + "\n")
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            with torch.compiler.set_stance("force_eager"):  # not worth compiling for another batch size
                draw(pipeline, out / "samples.png", args.guidance_scale)
            save(pipeline, out / "teacher")
            ema.restore(model.parameters())


if __name__ == "__main__":
    main()
