"""Train an embedded class-conditional teacher (zoo/fashion, zoo/emoji) and write it as a diffusers folder.

    python examples/train_teacher.py --data-dir FashionMNIST/raw --out runs/fashion_teacher
    python examples/train_teacher.py --data emoji --batch-size 64 --out runs/emoji_teacher

A DiT in pixel space, v-prediction, cosine noise schedule: 1.4 M parameters and, on Fashion-MNIST, 38.8 M
multiply-accumulates a forward.
The same command again resumes the run; the learning rate is constant and falls to zero over the last --cooldown steps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from tqdm import tqdm

from ardistill.zoo.data import CLASS_NAMES, load_data


def make_transformer(channels: int, size: int, num_classes: int) -> DiTTransformer2DModel:
    """The teacher's architecture, randomly initialised, zero-initialised as in the DiT paper (adaLN-Zero)."""
    model = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=channels,
        out_channels=channels,
        num_layers=7,
        sample_size=size,
        patch_size=4,
        num_embeds_ada_norm=num_classes,
    )
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
        # The label is dropped here, once per image, not by each block's own embedder apart from the others.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    for layer in (model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def make_scheduler() -> DDIMScheduler:
    """Cosine schedule with v-prediction: the last step has (almost) no signal, as the noise we sample from."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(CLASS_NAMES), default="fashion")
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--out", default="runs/fashion_teacher", help="run folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16000, help="optimiser steps (default: %(default)s)")
    parser.add_argument(
        "--cooldown", type=int, default=4000, help="last steps with falling rate (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--ema-decay", type=float, default=0.9995)
    parser.add_argument("--checkpoint-every", type=int, default=500)
    args = parser.parse_args()

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_data(args.data, "train", args.data_dir)
    num_classes = len(CLASS_NAMES[args.data])
    model, scheduler = make_transformer(images.shape[1], images.shape[-1], num_classes), make_scheduler()
    alpha = scheduler.alphas_cumprod.sqrt()  # (1000,)
    sigma = (1 - scheduler.alphas_cumprod).sqrt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)

    checkpoint, start = out / "checkpoint.pt", 0
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
        rows = torch.randint(len(images), (args.batch_size,), generator=generator)
        x0, label = images[rows], labels[rows, 0]  # (b, c, h, w), (b,)
        label[torch.rand(len(rows), generator=generator) < args.label_dropout] = num_classes
        # One time per stratum of [0, 1000): the loss varies strongly with time, this removes much of its noise.
        stratified = (torch.arange(len(rows)) + torch.rand(len(rows), generator=generator)) / len(rows)
        timestep = (stratified * len(alpha)).long()
        noise = torch.randn(x0.shape, generator=generator)
        a, s = alpha[timestep].view(-1, 1, 1, 1), sigma[timestep].view(-1, 1, 1, 1)
        prediction = model(a * x0 + s * noise, timestep, label).sample
        loss = (prediction - (a * noise - s * x0)).square().mean()
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

    ema.copy_to(model.parameters())
    model.save_pretrained(out / "teacher" / "transformer")
    scheduler.save_pretrained(out / "teacher" / "scheduler")


if __name__ == "__main__":
    main()
