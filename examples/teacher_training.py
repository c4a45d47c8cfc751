"""The training loop of the scripts that train embedded teachers: train_teacher.py and train_text_teacher.py."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm


def add_options(parser: argparse.ArgumentParser, **defaults: float | str) -> None:
    """Add the options of `train`.

    Args:
        parser: Of a script.
        defaults: Option -> its default, for ``out``, ``steps``, ``cooldown``, ``batch_size``, ``warmup`` and
            ``ema_decay``.
    """
    parser.add_argument("--out", default=defaults["out"], help="run folder (default: %(default)s)")
    for name, help_text in (("steps", "optimiser steps"), ("cooldown", "last steps, with falling learning rate")):
        parser.add_argument(f"--{name}", type=int, default=defaults[name], help=f"{help_text} (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=defaults["batch_size"])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=defaults["warmup"], help="first steps, with rising learning rate")
    parser.add_argument("--ema-decay", type=float, default=defaults["ema_decay"])
    parser.add_argument("--checkpoint-every", type=int, default=500)


def train(
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    args: argparse.Namespace,
    on_checkpoint: Callable[[], None] | None = None,
    *,
    fused: bool = False,
) -> None:
    """Train a model with AdamW and an exponential moving average (EMA), which it holds in the end.

    The learning rate rises over the first ``warmup`` steps and falls to zero over the last ``cooldown`` steps. The run
    resumes at ``checkpoint.pt`` in its folder, and each step has its own seed.

    Args:
        model: The trained modules.
        loss_of: (step, generator seeded for the step) -> loss.
        args: Options of `add_options`.
        on_checkpoint: Called after each checkpoint, with the EMA weights in the model.
        fused: Whether AdamW is fused.
    """
    out = Path(args.out)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fused or None
    )
    ema = EMAModel(model.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    start = _resume(out / "checkpoint.pt", model, optimizer, ema)
    began, loss_mean = time.time(), None
    for step in (bar := tqdm(range(start, args.steps), initial=start, total=args.steps, mininterval=10)):
        rate = min(1.0, (step + 1) / args.warmup, (args.steps - step) / args.cooldown)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        loss = loss_of(step, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())
        loss_mean = loss.item() if loss_mean is None else 0.99 * loss_mean + 0.01 * loss.item()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss_mean:.4f}")
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
            _save(out / "checkpoint.pt", model, optimizer, ema, step + 1)
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": step + 1, "loss": loss_mean, "seconds": time.time() - began}) + "\n")
            if on_checkpoint is not None:
                ema.store(model.parameters())
                ema.copy_to(model.parameters())
                on_checkpoint()
                ema.restore(model.parameters())
    ema.copy_to(model.parameters())


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """One random number in each of ``count`` equal parts of [0, 1), (count,).

    The loss varies strongly with time; times drawn this way remove much of its noise.
    """
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count


def zero(layers: list[nn.Linear]) -> None:
    """Set weights and biases to zero, as the DiT paper initialises modulations and heads (adaLN-Zero)."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel) -> int:
    """Load a checkpoint if there is one; the step to continue at."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    ema.load_state_dict(saved["ema"])
    return int(saved["step"])


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel, step: int) -> None:
    """Write a checkpoint, then rename it, so that an interrupted write leaves the earlier one."""
    temporary = path.with_suffix(".tmp")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict(), "step": step}
    torch.save(state, temporary)
    os.replace(temporary, path)
