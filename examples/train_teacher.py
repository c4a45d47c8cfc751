"""Train an embedded class-conditional teacher (zoo/fashion, zoo/emoji) and write it as a diffusers folder.

    python examples/train_teacher.py --data-dir FashionMNIST/raw --out runs/fashion_teacher
    python examples/train_teacher.py --data emoji --batch-size 64 --out runs/emoji_teacher

A DiT in pixel space, v-prediction, cosine noise schedule: 1.4 M parameters and, on Fashion-MNIST, 38.8 M
multiply-accumulates per forward pass. The same command again resumes the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from teacher_training import add_options, stratified, train, zero
from torch import Tensor

from ardistill.zoo.data import CLASS_NAMES, load_data


def make_transformer(channels: int, size: int, num_classes: int) -> DiTTransformer2DModel:
    """The teacher's architecture, randomly initialised, with adaLN-Zero as in the DiT paper."""
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
        # Labels are dropped in the training loop, once per image, not by each block's embedder separately.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    zero([block.norm1.linear for block in model.transformer_blocks] + [model.proj_out_1, model.proj_out_2])
    return model


def make_scheduler() -> DDIMScheduler:
    """Cosine schedule with v-prediction: the noisiest time has almost no signal, as in sampling."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(CLASS_NAMES), default="fashion")
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--label-dropout", type=float, default=0.1)
    add_options(
        parser, out="runs/fashion_teacher", steps=16000, cooldown=4000, batch_size=128, warmup=200, ema_decay=0.9995
    )
    args = parser.parse_args(argv)

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_data(args.data, "train", args.data_dir)
    num_classes = len(CLASS_NAMES[args.data])
    model, scheduler = make_transformer(images.shape[1], images.shape[-1], num_classes), make_scheduler()
    alpha = scheduler.alphas_cumprod.sqrt()  # (1000,)
    sigma = (1 - scheduler.alphas_cumprod).sqrt()

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (args.batch_size,), generator=generator)
        x0, label = images[rows], labels[rows, 0]  # (b, c, h, w), (b,)
        label[torch.rand(len(rows), generator=generator) < args.label_dropout] = num_classes
        timestep = (stratified(len(rows), generator) * len(alpha)).long()
        noise = torch.randn(x0.shape, generator=generator)
        a, s = alpha[timestep].view(-1, 1, 1, 1), sigma[timestep].view(-1, 1, 1, 1)
        prediction = model(a * x0 + s * noise, timestep, label).sample
        return (prediction - (a * noise - s * x0)).square().mean()

    train(model, loss_of, args)
    model.save_pretrained(out / "teacher" / "transformer")
    scheduler.save_pretrained(out / "teacher" / "scheduler")


if __name__ == "__main__":
    main()
