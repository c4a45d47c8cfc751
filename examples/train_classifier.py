"""Train the independent classifier of zoo/fashion or zoo/emoji: their feature network, which also measures accuracy.

    python examples/train_classifier.py --data-dir FashionMNIST/raw
    python examples/train_classifier.py --data emoji --epochs 2 --train-images 20000

About ten minutes on two cores for Fashion-MNIST, three for emoji. Writes classifier.safetensors (float16) and
classifier.json with the accuracy of the rounded weights on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ardistill.zoo.classifier import Classifier, classifier_path
from ardistill.zoo.data import CLASS_NAMES, load_data

SOURCES = {"fashion": "Fashion-MNIST (Zalando SE, MIT)", "emoji": "the emoji world (Noto emoji, Apache-2.0)"}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each grey image by -2..2 pixels and mirror half of them; shape (n, 1, 28, 28) in and out."""
    n = len(images)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    down, right = torch.randint(0, 5, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(28), right + torch.arange(28)  # (n, 28)
    shifted = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, shifted.flip(-1), shifted)


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> list[float]:
    """Accuracy for each label, the class first; labels have shape (n, k)."""
    predicted = [torch.stack([x.argmax(1) for x in model.labels(rows)], 1) for rows in images.split(1000)]
    return [round(share, 4) for share in (torch.cat(predicted) == labels).float().mean(0).tolist()]


def save_rounded(model: Classifier, path: Path) -> None:
    """Write weights in float16, and round those of the model, so that the same weights are measured."""
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    model.load_state_dict(weights)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(CLASS_NAMES), default="fashion")
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--out", help="safetensors file (default: the shipped one)")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of the one-cycle schedule")
    parser.add_argument("--label-smoothing", type=float, default=0.05)
    parser.add_argument("--train-images", type=int, default=60_000, help="use only the first images, for a trial")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = load_data(args.data, "train", args.data_dir)
    images, labels = images[: args.train_images], labels[: args.train_images]
    model = Classifier(args.data).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.05)
    num_batches = len(images) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.epochs * num_batches)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    for epoch in range(args.epochs):
        order = torch.randperm(len(images), generator=generator)[: num_batches * args.batch_size]
        total = 0.0
        for rows in tqdm(order.split(args.batch_size), desc=f"epoch {epoch + 1}/{args.epochs}", mininterval=10):
            # Scenes of the emoji world are already placed and mirrored at random.
            batch = augment(images[rows], generator) if args.data == "fashion" else images[rows]
            logits = model.labels(batch.to(memory_format=torch.channels_last))
            loss = torch.stack([loss_of(x, y) for x, y in zip(logits, labels[rows].T, strict=True)]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: mean loss {total / num_batches:.4f}", flush=True)

    out = Path(args.out or classifier_path(args.data))
    save_rounded(model, out)
    test, *others = accuracy(model.eval(), *load_data(args.data, "test", args.data_dir))
    facts = {
        "test_accuracy": test,
        **({"test_accuracy_of_other_labels": others} if others else {}),
        "test_images": 10_000,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_features": model.head.in_features,
        "data": f"{SOURCES[args.data]}, first {len(images)} train images",
        "augmentation": "shift by -2..2 pixels, mirror" if args.data == "fashion" else "none",
        "optimizer": "AdamW, one-cycle learning rate, last weights",
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "label_smoothing": args.label_smoothing,
        "dtype": "float16",
        "script": "examples/train_classifier.py",
    }
    out.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"test accuracy {test:.4f}, of other labels {others}; wrote {out}")


if __name__ == "__main__":
    main()
