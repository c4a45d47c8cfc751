"""Largest difference between our student and the authors' model with the same random weights.

    python benchmarks/parity_reference.py --reference DIR

DIR is a checkout of github alsdudrla10/ARD; timm is needed. Exits with 1 above 1e-4.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from reference import load_reference, make_student

from ardistill.student.sample import sample


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="checkout of alsdudrla10/ARD")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--history-layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    size = {"hidden_size": 192, "depth": args.depth, "num_heads": 3}
    theirs = load_reference(args.reference, **size)
    student = make_student(theirs, **size, history_layers=args.history_layers)
    inputs = torch.randn(args.batch, 4, 4, 32, 32)  # x_T, then three denoised states
    labels = torch.arange(args.batch) * 7
    time = torch.full((args.batch,), 999.0)
    noise, z15, z10, z5 = inputs.unbind(1)
    expected = torch.stack(theirs(z5, z10, z15, noise, time, args.history_layers, labels), 1)[:, :, :4]
    forward = (student(inputs, {"class_labels": labels}) - expected).abs().max().item()
    expected = torch.stack(theirs.infer(noise, time, args.history_layers, labels), 1)
    infer = (sample(student, noise, {"class_labels": labels}) - expected).abs().max().item()
    print(json.dumps({"forward": forward, "infer": infer, "scale": expected.abs().max().item()}))
    sys.exit(int(max(forward, infer) > 1e-4))


if __name__ == "__main__":
    main()
