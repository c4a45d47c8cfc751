"""Make the shipped reference of an embedded teacher (zoo/fashion, zoo/emoji) from its data set and print its floors.

    python examples/make_reference.py --data-dir FashionMNIST/raw
    python examples/make_reference.py --data emoji

Run it again whenever the classifier has been trained anew: the features are the classifier's.
"""

from __future__ import annotations

import argparse

import torch

from ardistill.evaluation import (
    FeatureStatistics,
    extract_features,
    feature_network,
    kernel_distance,
    precision_recall,
    real_floor,
)
from ardistill.zoo.data import CLASS_NAMES, load_data
from ardistill.zoo.reference import Reference, load_reference, reference_path

NUM_STORED = 2000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(CLASS_NAMES), default="fashion")
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--out", help="safetensors file (default: the shipped one)")
    args = parser.parse_args(argv)

    out = args.out or reference_path(args.data)
    network = feature_network(f"{args.data}-classifier")
    train = extract_features(network, load_data(args.data, "train", args.data_dir)[0])
    test = extract_features(network, load_data(args.data, "test", args.data_dir)[0])
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
        f"  {real_floor(train, reference.train, NUM_STORED).distance:.3f}, the same of images in the reference, "
        "which the classifier was trained on"
    )
    print(f"  KID {kernel_distance(real, held_out).mean:.5f}, {precision_recall(real, held_out)}")


if __name__ == "__main__":
    main()
