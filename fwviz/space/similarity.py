"""Which task vectors resemble each other: cosines from their gram matrix, and groups of the similar."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(gram: Tensor) -> Tensor:
    """C[i, j] = K[i, j] / √(K[i, i]·K[j, j]), 0 where a length is 0: (n, n) → (n, n)."""
    lengths = gram.diagonal().clamp(min=0.0).sqrt()
    scale = lengths[:, None] * lengths[None, :]
    return torch.where(scale > 0, gram / scale.masked_fill(scale == 0, 1.0), 0.0)


def similar_groups(similarity: Tensor, size: int) -> list[list[int]]:
    """Average linkage: join the two groups of largest mean similarity, as long as one of at most ``size`` comes out.

    Groups are sorted by their first member; of equal pairs the first is joined. (n, n) → a partition of 0 … n − 1.
    """
    linkage = similarity.double().clone()
    groups = [[i] for i in range(len(linkage))]
    upper = torch.ones_like(linkage, dtype=torch.bool).triu(1)
    while True:
        # A group that was joined to another is left behind empty.
        sizes = torch.tensor([len(group) or size + 1 for group in groups])
        fits = upper & (sizes[:, None] + sizes[None, :] <= size)
        if not bool(fits.any()):
            return [sorted(group) for group in groups if group]
        a, b = divmod(int(linkage.masked_fill(~fits, -torch.inf).argmax()), len(groups))
        joined = (sizes[a] * linkage[a] + sizes[b] * linkage[b]) / (sizes[a] + sizes[b])
        linkage[a], linkage[:, a] = joined, joined
        groups[a], groups[b] = groups[a] + groups[b], []
