"""Make the shipped reference of an embedded teacher's data set, and print its floors.

    python examples/make_reference.py --data-dir FashionMNIST/raw
    python examples/make_reference.py --data emoji
    python examples/make_reference.py --data scenes

Run it again whenever the classifier or detector was trained again, because the features come from it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ardistill.evaluation import (
    FeatureStatistics,
    extract_features,
    feature_network,
    kernel_distance,
    precision_recall,
    real_floor,
)
from ardistill.evaluation.reference import NETWORKS, Reference, load_reference, reference_path
from ardistill.zoo import FOLDERS
from ardistill.zoo.data import load_data
from ardistill.zoo.scenes.data import as_images, scene

NUM_STORED = 2000
"""Images in each of the two stored sets of features."""


def load(name: str, split: str, data_dir: str | None) -> Tensor:
    """Images of a split, in [-1, 1], (n, c, h, w): 60,000 to train on, 10,000 to test on."""
    if name == "scenes":
        seed, count = {"train": (0, 60_000), "test": (1, 10_000)}[split]
        return as_images(scene(seed, index) for index in range(count))
    return load_data(name, split, data_dir)[0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(FOLDERS), default="fashion")
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--out", help="safetensors file (default: the shipped one)")
    args = parser.parse_args(argv)

    out = args.out or reference_path(args.data)
    network = feature_network(NETWORKS[args.data])
    train = extract_features(network, load(args.data, "train", args.data_dir))
    test = extract_features(network, load(args.data, "test", args.data_dir))
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: 2 * NUM_STORED]
    Reference(
        train=FeatureStatistics.from_features(train),
        test=FeatureStatistics.from_features(test),
        real_features=test[rows[:NUM_STORED]],
        held_out_features=test[rows[NUM_STORED:]],
    ).save(out, network.name)

    reference = load_reference(out)
    held_out, real = reference.held_out_features, reference.real_features
    print(f"wrote {out}\n{network.fd_name} of real images")
    print(f"  {real_floor(test, reference.train)}")
    print(f"  {real_floor(held_out, reference.train)}")
    print(
        f"  {real_floor(train, reference.train, NUM_STORED).distance:.3f}, the same for images in the reference, "
        "which the network was trained on"
    )
    print(f"  KID {kernel_distance(real, held_out).mean:.5f}, {precision_recall(real, held_out)}")


if __name__ == "__main__":
    main()
