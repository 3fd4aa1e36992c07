"""Where the task vectors of two checkpoints pull in opposite directions, streamed over blocks of coordinates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fwviz.types import TaskVectors

_BLOCK_ELEMENTS = 1 << 22  # of all checkpoints together; sums of float32 counts stay exact below 2²⁴


def blocks(vectors: TaskVectors, start: int, stop: int) -> Iterator[Tensor]:
    """τ[:, start:stop] in pieces of some columns: (n, c) float32 each, at most 16 MiB whatever n."""
    columns = max(1, _BLOCK_ELEMENTS // vectors.n)
    for first in range(start, stop, columns):
        yield vectors.block(first, min(first + columns, stop))


def sign_conflicts(vectors: TaskVectors, start: int, stop: int, *, weighted: bool = False) -> Tensor:
    """The share of coordinates in [start, stop) where τᵢ and τⱼ have opposite signs: (n, n) float64 in [0, 1].

    Counted are the coordinates where neither is zero: Σ_p [τᵢ,p·τⱼ,p < 0] / Σ_p [τᵢ,p·τⱼ,p ≠ 0]. ``weighted`` gives a
    coordinate the weight |τᵢ,p·τⱼ,p|, so that large changes count. 0 where there is nothing to count.
    """
    against = torch.zeros(vectors.n, vectors.n, dtype=torch.float64)
    counted = torch.zeros_like(against)
    for part in blocks(vectors, start, stop):
        size = part if weighted else part.sign()
        product, both = size @ size.t(), size.abs() @ size.abs().t()
        # Same and opposite signs add up to all, and their difference is the product.
        against += ((both - product) / 2).cpu().double()
        counted += both.cpu().double()
    return torch.where(counted > 0, against / counted, 0.0).clamp(0.0, 1.0)
