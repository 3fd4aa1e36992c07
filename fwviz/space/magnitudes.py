"""The distribution of |τ| in one pass and fixed memory: a histogram over the bits of the numbers themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fwviz.space.pairs import blocks
from fwviz.types import TaskVectors

_SHIFT = 20  # keeps the exponent and three bits of the mantissa: bins 7 to 13 % wide
BINS = 1 << (31 - _SHIFT)


def histogram(vectors: TaskVectors, start: int, stop: int) -> Tensor:
    """How many of |τᵢ| over [start, stop) fall into each bin of about 10 % width: (n, BINS) int64.

    The first bin holds zeros (and numbers below 2⁻¹²⁶). :func:`edges` has the bounds of the bins.
    """
    counts = torch.zeros(vectors.n * BINS, dtype=torch.int64)
    first = torch.arange(vectors.n, dtype=torch.int64)[:, None] * BINS
    for part in blocks(vectors, start, stop):
        # The bits of a positive float are ordered like the number.
        codes = part.cpu().abs().contiguous().view(torch.int32) >> _SHIFT
        counts += torch.bincount((codes + first).flatten(), minlength=counts.numel())
    return counts.view(vectors.n, BINS)


def edges() -> Tensor:
    """Lower bounds of the bins, ascending: (BINS,) float32."""
    return (torch.arange(BINS, dtype=torch.int32) << _SHIFT).view(torch.float32)


def quantiles(counts: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of a histogram, linear inside a bin: counts (…, BINS) → (…, levels) float64; 0 where it is empty."""
    lower = edges().double()
    upper = torch.cat([lower[1:], lower[-1:]])
    lower[0] = upper[0] = 0.0  # zeros are zero
    below = counts.cumsum(dim=-1).double()
    wanted = below[..., -1:] * torch.tensor(list(levels), dtype=torch.float64)
    at = torch.searchsorted(below.contiguous(), wanted.contiguous()).clamp(max=BINS - 1)
    inside = counts.gather(-1, at).double()
    share = torch.where(inside > 0, (wanted - below.gather(-1, at) + inside) / inside, 0.0)
    return lower[at] + share * (upper[at] - lower[at])


def density(counts: Tensor, at: Tensor) -> Tensor:
    """Density of log₁₀|τ| at the sizes ``at`` (K,) > 0, per decade: counts (BINS,) → (K,) float64.

    A Gaussian kernel estimate, in which each bin is spread evenly over its width: the kernel's integral over a bin is a
    difference of error functions. The bandwidth is Silverman's rule, and no less than a bin. Zeros have no logarithm:
    they count in the total, so that the density integrates to the share that moved.

    Source: Silverman (1986), Density Estimation for Statistics and Data Analysis, eq. 3.31.
    """
    here = counts[1:].nonzero().flatten() + 1
    if not len(here):
        return torch.zeros(len(at), dtype=torch.float64)
    bounds = edges().double()
    low, high = bounds[here].log10(), bounds[(here + 1).clamp(max=BINS - 1)].log10()
    shares = counts[here].double() / counts.sum()
    middle = (low + high) / 2
    moved = shares / shares.sum()
    mean = (moved * middle).sum()
    spread = float((moved * (middle - mean).square()).sum().sqrt())
    below = moved.cumsum(0)
    quarter, three = (middle[int(torch.searchsorted(below, level).clamp(max=len(here) - 1))] for level in (0.25, 0.75))
    iqr = float(three - quarter) / 1.34
    width = 0.9 * min(x for x in (spread, iqr or spread)) * float(counts[here].sum()) ** -0.2
    bandwidth = max(width, float((high - low).max()))
    steps = (at.double().log10()[:, None, None] - torch.stack([low, high], dim=1)) / bandwidth
    whole = torch.special.ndtr(steps)
    return ((whole[..., 0] - whole[..., 1]) * (shares / (high - low))).sum(dim=1)
