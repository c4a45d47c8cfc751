"""Membership in the neighbourhood of a set of samples, the basis of precision and recall."""

from __future__ import annotations

import torch
from torch import Tensor


def lies_among(samples: Tensor, members: Tensor, neighbours: int = 3, chunk: int = 1000) -> Tensor:
    """Whether each sample is no farther from one of the members than that member's k-th nearest neighbour is.

    The share of fakes that lie among real samples is the improved precision, the share of real samples that lie among
    fakes the improved recall.

    Args:
        samples: Features, (n, d).
        members: Features of the set, (m, d), in the same dtype.
        neighbours: k; at most m - 1 is used.
        chunk: Rows of the distance matrix held at once.

    Returns:
        Booleans, (n,).

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2.
    """
    rank = min(neighbours + 1, len(members))  # each member is its own nearest neighbour
    radius = torch.cat([torch.cdist(rows, members).kthvalue(rank, dim=1).values for rows in members.split(chunk)])
    return torch.cat([(torch.cdist(rows, members) <= radius).any(dim=1) for rows in samples.split(chunk)])
