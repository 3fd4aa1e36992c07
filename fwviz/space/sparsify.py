"""Keeping only part of task vectors, and letting those that remain agree.

Transforms work in place on a block (n, C) of the same C coordinates of n task vectors, so that a merge can walk the
coordinates chunk by chunk; what a transform must know of the whole vector, a threshold, is found before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fwviz.space.selection import order_statistics

# --- trimming by magnitude ----------------------------------------------------------------------


def kept_above(size: int, density: float, rule: str) -> int:
    """The rank (0 is the smallest) of the threshold among ``size`` magnitudes, which is itself kept.

    ``released`` keeps ⌊density·size⌋ + 1 entries, as the TIES code does (Yadav et al., 2023: kthvalue of
    size − ⌊density·size⌋); ``exact`` keeps ⌊density·size⌋, one at least, as mergekit and PEFT do.
    """
    kept = int(size * density)
    return max(size - kept - 1, 0) if rule == "released" else size - max(kept, 1)


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the entries of largest magnitude and zero the rest, in place and over the whole vector.

    The threshold is the (P − ⌊density·P⌋)-th smallest magnitude and is itself kept, so ⌊density·P⌋ + 1 entries stay:
    the convention of the released TIES code (Yadav et al., 2023).

    Args: delta (P,), density the share kept, in [0, 1].
    """
    rank = kept_above(delta.numel(), density, "released")
    threshold = order_statistics(lambda a, b: delta[a:b].abs()[None], 0, delta.numel(), [rank], 1)
    trim_rows(delta[None], threshold[:, 0])
    return delta


def trim_rows(block: Tensor, thresholds: Tensor) -> Tensor:
    """Zero the entries of each row whose magnitude is below its threshold, in place: (n, C), (n,) → (n, C)."""
    for row, threshold in zip(block, thresholds.tolist(), strict=True):
        if threshold > 0:
            # hardshrink zeroes |x| ≤ λ in one pass without a mask; the float before the threshold keeps equality.
            limit = float(np.nextafter(np.float32(threshold), np.float32(0)))
            torch.hardshrink(row, limit, out=row)
    return block


# --- agreeing on a sign -------------------------------------------------------------------------


def elect_sign(block: Tensor) -> Tensor:
    """γ = sgn(Σᵢ τ̂ᵢ), 0 where the sum is 0: (n, C) → (C,)."""
    return block.sum(dim=0).sign_()


def disjoint_merge(block: Tensor, sign: Tensor, how: str) -> Tensor:
    """Per coordinate the mean or sum of the entries that have the elected sign: (n, C), (C,) → (C,).

    Entries that are 0 do not count; where none agrees the result is 0. ``how`` is mean or sum. TIES (2023), eq. 4.
    """
    agreeing = (block * sign).clamp_min_(0.0)
    total = agreeing.sum(dim=0).mul_(sign)
    return total if how == "sum" else total.div_(agreeing.sign_().sum(dim=0).clamp_min_(1.0))


def cancelled(block: Tensor, sign: Tensor) -> bool:
    """True if the entries of some coordinate cancel out exactly: there are some, but no sign was elected."""
    return bool(((sign == 0) & (block.amax(dim=0) > 0)).any())
