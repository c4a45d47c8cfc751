"""Our training step against the authors': time and memory, interleaved runs with the same weights.

    python benchmarks/train_step.py --reference DIR [--json FILE]

Forward and backward, S = 4, N = 6 (at most the depth), 256 tokens, no checkpointing. Saved memory: bytes that autograd
keeps for backward, each storage once, parameters left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reference import load_reference, make_student

SIZES = {"384x12": (384, 12, 6), "1152x4": (1152, 4, 16)}


def matmul_peak(size: int = 2048, repeats: int = 5) -> float:
    """Measured fp32 matrix product, FLOP/s."""
    a, b = torch.randn(2, size, size)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def saved_bytes(run: Callable[[], torch.Tensor], parameters: Any) -> int:
    """Bytes autograd saves in ``run``."""
    kept = {p.untyped_storage().data_ptr() for p in parameters}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = run()
    del loss
    return sum(storages.values())


def compare(reference: str, name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Time and saved memory of both at one size; ratios above 1 in speed mean that ours is faster."""
    hidden_size, depth, num_heads = SIZES[name]
    history_layers = min(6, depth)
    size = {"hidden_size": hidden_size, "depth": depth, "num_heads": num_heads}
    theirs = load_reference(reference, **size)
    ours = make_student(theirs, **size, history_layers=history_layers)
    inputs, targets = torch.randn(2, batch, 4, 4, 32, 32)
    labels, time_ = torch.arange(batch), torch.full((batch,), 999.0)
    noise, z15, z10, z5 = inputs.unbind(1)

    def run_theirs() -> torch.Tensor:
        outputs = theirs(z5, z10, z15, noise, time_, history_layers, labels)
        return sum((o[:, :4] - t).square().mean() for o, t in zip(outputs, targets.unbind(1), strict=True)) / 4

    def run_ours() -> torch.Tensor:
        return (ours(inputs, {"class_labels": labels}) - targets).square().mean()

    runs = {"reference": (run_theirs, theirs), "ours": (run_ours, ours)}
    times: dict[str, list[float]] = {"reference": [], "ours": []}
    for round_ in range(rounds + 1):
        for arm, (run, model) in runs.items():
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            run().backward()
            if round_:
                times[arm].append(time.perf_counter() - began)
    for _, model in runs.values():
        model.zero_grad(set_to_none=True)
    saved = {arm: saved_bytes(run, [*model.parameters(), *model.buffers()]) for arm, (run, model) in runs.items()}
    ratios = [a / b for a, b in zip(times["reference"], times["ours"], strict=True)]
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run_ours().backward()
    median = statistics.median(times["ours"])
    return {
        "size": name,
        "batch": batch,
        "history_layers": history_layers,
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_range": [min(ratios), max(ratios)],
        "saved_ratio": saved["ours"] / saved["reference"],
        "saved_mib": {arm: value / 2**20 for arm, value in saved.items()},
        "seconds": {arm: statistics.median(value) for arm, value in times.items()},
        "share_of_matmul_peak": counter.get_total_flops() / median / matmul_peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="checkout of alsdudrla10/ARD")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="also write the result to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    results = [compare(args.reference, name, args.batch, args.rounds) for name in SIZES]
    text = json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "results": results}, indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
