"""Which task vectors resemble each other, in cosines and in groups, and which features do."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(gram: Tensor) -> Tensor:
    """C[i, j] = K[i, j] / √(K[i, i]·K[j, j]), 0 where a length is 0: (n, n) → (n, n)."""
    lengths = gram.diagonal().clamp(min=0.0).sqrt()
    scale = lengths[:, None] * lengths[None, :]
    return torch.where(scale > 0, gram / scale.masked_fill(scale == 0, 1.0), 0.0)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖), Frobenius, of features X (N, D), Y (N, E) of the same N inputs, their means taken out.

    In [0, 1]: 1 where one is a rotation and a scaling of the other. With N below D or E it says too much, because few
    inputs are always alike. 0 where one of the two is the same for all inputs.
    Source: Kornblith et al. (2019), Similarity of Neural Network Representations Revisited, eq. 4 for a linear kernel.
    """
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"features of {x.shape[0]} and of {y.shape[0]} inputs cannot be compared")
    x, y = (features.double() - features.double().mean(dim=0) for features in (x, y))
    varied = [float((f @ f.T).norm()) for f in (x, y)]
    if min(varied) <= 0.0:
        return 0.0
    return min(float((y.T @ x).square().sum()) / (varied[0] * varied[1]), 1.0)


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
