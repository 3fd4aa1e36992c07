"""Keeping only part of task vectors, and letting those that remain agree.

Transforms work in place on a block (n, C) of the same C coordinates of n task vectors, so that a merge can walk the
coordinates chunk by chunk; what a transform must know of the whole vector, a threshold, is found before.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def keep_between(block: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Zero the entries whose magnitude is not in [low, high], in place: the mask of Breadcrumbs.

    Args: block (…, C); ``low`` and ``high`` of a shape that broadcasts to it.
    """
    magnitude = block.abs()
    return block.mul_((magnitude >= low).logical_and_(magnitude <= high))


def sorted_columns(keys: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """The ``ranks``-th smallest key of every row, (R, 1) each: (R, C) → one per rank. ``keys`` are overwritten."""
    ordered = keys.cpu().numpy()
    ordered.sort(axis=1)  # several times as fast as a sort that carries indices
    return [torch.from_numpy(ordered[:, rank : rank + 1]).to(keys.device) for rank in ranks]


# --- dropping at random ------------------------------------------------------------------------


def drop_and_rescale(block: Tensor, rate: float, draws: Tensor) -> Tensor:
    """Drop entries with probability ``rate`` and divide the others by 1 − rate, in place: DARE (2024), eq. 2.

    Args: block and ``draws`` of one shape; draws uniform in [0, 1), overwritten. An entry stays where draws ≥ rate.
    """
    return block.mul_(draws.ge_(rate)).div_(1.0 - rate)


def ranked_drop(rows: Tensor, density: float, epsilon: float, draws: Tensor) -> Tensor:
    """Keep the entry of rank r in its row (0 the smallest of C) with p_r = density − ε + 2ε·r/(C − 1), over p_r.

    MagPrune of DELLA (2024), eq. 3–5, in place; equal magnitudes rank in the order of their columns. The only entry of
    a row of one has p = density.

    Args: ``rows`` and ``draws`` (R, C); draws uniform in [0, 1). The entry of rank r stays where draws[:, r] < p_r.
    """
    count = rows.shape[1]
    ramp = torch.linspace(-epsilon, epsilon, count) if count > 1 else torch.zeros(1)
    chance = (density + ramp).to(rows.device)
    factors = torch.lt(draws, chance, out=torch.empty_like(draws)).mul_(chance.reciprocal())
    sizes = rows.abs()
    columns = ascending_columns(sizes)
    return rows.mul_(sizes.scatter_(1, columns, factors))


def ascending_columns(keys: Tensor) -> Tensor:
    """The columns of every row from the smallest key to the largest, equal keys as they stand: (R, C) → (R, C) int64.

    ``torch.argsort(keys, dim=1, stable=True)`` of finite keys ≥ 0, several times as fast.
    """
    # Magnitudes order like their bits: with the column below them, one integer sort gives the ranks.
    keyed = keys.cpu().view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    keyed.bitwise_or_(torch.arange(keys.shape[1]))
    # Positive numbers order like their bits in float64 as well, which numpy sorts a quarter faster than integers; keys
    # too small for that to hold belong to entries that are 0 or as good as.
    keyed.numpy().view(np.float64).sort(axis=1)
    return keyed.bitwise_and_(0xFFFFFFFF).to(keys.device)


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
    """True if the entries of some coordinate cancel out exactly: there are some, but none has the elected sign."""
    return bool(((sign == 0) & (block.amax(dim=0) > 0)).any())
