"""Frank–Wolfe on coefficient matrices: the oracle, the gap, projections and step rules.

Everything here works on small tensors whose rows are groups of parameters and whose columns are vertices; nothing
touches a weight. A row of *slopes* holds ⟨∇_g ℓ(θ), s_v − θ⟩ for each vertex v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fwviz.types import Groups

# --- groups -------------------------------------------------------------------------------------


def parents(fine: Groups, coarse: Groups) -> Tensor:
    """For each group of ``fine``, the index of the group of ``coarse`` that contains it.

    Tensors lie inside layers and layers inside the model, so every coarser partition of one layout contains the finer.

    Returns: (G_fine,) int64.
    """
    starts = torch.tensor(fine.bounds[:-1])
    return torch.bucketize(starts, torch.tensor(coarse.bounds[1:-1]), right=True)


def sum_groups(values: Tensor, parent: Tensor, count: int) -> Tensor:
    """Add the rows of (G_fine, …) that share a parent → (count, …)."""
    return values.new_zeros((count, *values.shape[1:])).index_add_(0, parent, values)


# --- oracle and gap -----------------------------------------------------------------------------


def lmo(scores: Tensor) -> Tensor:
    """The vertex with the lowest score of each group: argmin_v ⟨∇_g ℓ, s_v⟩ (FW-Merging, eq. 7 and 10).

    scores (G, V) → (G,) int64; the first of equals.
    """
    return torch.argmin(scores, dim=1)


def top_k(scores: Tensor, k: int, taken: Tensor | None = None) -> Tensor:
    """The k lowest-scoring vertices of each group, best first, leaving out those in the mask ``taken`` (G, V).

    scores (G, V) → (G, min(k, vertices left)) int64; the first of equals comes first.
    """
    if taken is not None:
        k = min(k, int((~taken).sum(dim=1).min()))
        scores = scores.masked_fill(taken, torch.inf)
    return torch.sort(scores, dim=1, stable=True).indices[:, :k]


def fw_gap(slopes: Tensor) -> float:
    """The Frank–Wolfe gap Σ_g max_v ⟨−∇_g ℓ(θ), s_v − θ⟩ (FW-Merging, eq. 4, summed over groups).

    At a point of the hull it is ≥ 0, and for a convex loss it is at least ℓ(θ) − min ℓ. slopes (G, V).
    """
    return float((-slopes).amax(dim=1).sum())


def in_hull(coefficients: Tensor, initial: Tensor | None = None, *, base: bool = True, tolerance: float = 1e-5) -> bool:
    """Whether every group's θ₀ + Σᵢ λᵢ·τᵢ lies in the hull of the checkpoints, an initial solution and the base.

    With λ ≥ 0 that is: some share μ ∈ [0, 1] of the initial solution leaves λ − μ·λ⁰ ≥ 0 with a sum ≤ 1 − μ, or of
    just 1 − μ where the base is no vertex. The test is exact for linearly independent task vectors.
    coefficients, initial (G, n), initial ≥ 0; None is no such vertex.
    """
    if bool((coefficients < -tolerance).any()):
        return False
    excess = coefficients.sum(dim=1) - 1.0
    if initial is None:
        return bool((excess <= tolerance).all()) and (base or bool((excess >= -tolerance).all()))
    positive = initial > 0
    ratio = torch.where(positive, coefficients / initial.masked_fill(~positive, 1.0), 1.0)
    most = ratio.amin(dim=1).clamp(0.0, 1.0)
    # Only an initial solution whose own sum is above one can excuse such a sum, and without the base only one whose sum
    # is below can excuse that.
    reach = most * (initial.sum(dim=1) - 1.0)
    below = bool((excess <= reach.clamp(min=0.0) + tolerance).all())
    return below and (base or bool((excess >= reach.clamp(max=0.0) - tolerance).all()))


# --- projections --------------------------------------------------------------------------------


def project_simplex(v: Tensor, total: float = 1.0) -> Tensor:
    """The nearest point of {λ ≥ 0, Σλ = total} to each row of v (…, m); total > 0.

    λ = max(v − ν, 0) with the threshold ν found by sorting. Held, Wolfe & Crowder (1974); Duchi et al. (2008).
    """
    ordered = torch.sort(v, dim=-1, descending=True).values
    counts = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
    thresholds = (torch.cumsum(ordered, dim=-1) - total) / counts
    support = (ordered > thresholds).sum(dim=-1, keepdim=True).clamp(min=1)
    return (v - thresholds.gather(-1, support - 1)).clamp(min=0.0)


def project_capped_simplex(v: Tensor, total: float = 1.0) -> Tensor:
    """The nearest point of {λ ≥ 0, Σλ ≤ total} to each row of v (…, m).

    Clipping at zero is the answer wherever its sum fits; elsewhere the sum constraint is active.
    """
    clipped = v.clamp(min=0.0)
    fits = clipped.sum(dim=-1, keepdim=True) <= total
    return torch.where(fits, clipped, project_simplex(v, total))


# --- step rules ---------------------------------------------------------------------------------


def open_loop(t: int) -> float:
    """γ_t = 2 / (t + 2), t = 0, 1, …: needs no loss at all (Jaggi, 2013)."""
    return 2.0 / (t + 2.0)


def official(t: int, scale: float) -> float:
    """The released FW-Merging step 2 / (t + 2) · scale; scale 0.1·0.3 for vision, 0.29 for NLU."""
    return open_loop(t) * scale


def short_step(slope: float, curvature: float) -> float:
    """γ = −slope / curvature in [0, 1]: the minimiser of the bound ℓ + γ·slope + γ²/2·curvature.

    ``curvature`` is L·‖s − θ‖² for an L-smooth loss (Demyanov & Rubinov; FW-Merging names no constant).
    """
    if slope >= 0.0:
        return 0.0
    return 1.0 if curvature <= 0.0 else min(1.0, -slope / curvature)


def short_steps(
    loss_at: Callable[[float], float], start: float, slope: float, curvature: float, evaluations: int
) -> Iterator[tuple[float, float]]:
    """Short steps with the curvature found by doubling: yields trials (γ, ℓ) until the quadratic bound holds.

    The bound is ℓ + γ·slope + γ²/2·curvature; its failure at γ proves a larger curvature. Pedregosa et al. (2020).
    A loss that is not finite proves no more than that the step was too long: the next is a quarter of it.
    """
    for _ in range(evaluations):
        curvature = max(curvature, -slope)  # any less gives γ = 1 too, and would only ask for more than it can
        gamma = short_step(slope, curvature)
        if gamma == 0.0:
            return
        value = loss_at(gamma)
        yield gamma, value
        if not math.isfinite(value):
            curvature *= 4.0
            continue
        if value <= start + gamma * slope + 0.5 * gamma * gamma * curvature:
            return
        measured = 2.0 * (value - start - gamma * slope) / (gamma * gamma)
        curvature = max(2.0 * curvature, min(measured, 100.0 * curvature))


def line_search(
    loss_at: Callable[[float], float],
    start: float,
    slope: float | None,
    first: float = 1.0,
    evaluations: int = 8,
    tolerance: float = 0.02,
) -> Iterator[tuple[float, float]]:
    """Look for argmin over γ ∈ [0, 1] of ℓ(θ + γ·d) (FW-Merging, eq. 3), yielding every trial (γ, ℓ) as it is made.

    Successive parabolas through the best trial and its neighbours, kept inside their bracket; exact on a quadratic
    after two trials. The caller takes the best trial, or γ = 0 if none is below ``start``. Beyond a trial whose loss is
    not finite nothing is tried any more; after it comes the point a quarter of the way to it.

    Args: ``start`` = ℓ(θ), ``slope`` = ⟨∇ℓ(θ), d⟩ < 0 (None if unknown), ``first`` the first γ tried, ``tolerance``
    relative in γ.
    """
    known = [(0.0, start)]
    limit = math.inf  # the least γ whose loss is not finite
    gamma: float | None = min(max(first, 1e-6), 1.0)
    for _ in range(evaluations):
        if gamma is None:
            return
        value = loss_at(gamma)
        yield gamma, value
        if math.isfinite(value):
            known = sorted([*known, (gamma, value)])
        else:
            limit = gamma
            known = [trial for trial in known if trial[0] < limit]
        gamma = _next_trial(known, slope, tolerance) if len(known) > 1 else limit
        if gamma is not None and gamma >= limit:
            last = known[-1][0]
            gamma = last + 0.25 * (limit - last) if limit - last > max(tolerance * limit, 1e-5) else None


def _next_trial(known: list[tuple[float, float]], slope: float | None, tolerance: float) -> float | None:
    """Where to look next, given trials in order of γ (the first is γ = 0); None when the minimum is pinned down."""
    best = min(range(len(known)), key=lambda j: known[j][1])
    if best == 0:
        # Even the nearest trial was too far: fall back towards zero along the parabola that the slope fixes.
        (_, low), (right, high) = known[:2]
        vertex = _vertex_from_slope(low, slope, right, high)
        return None if right < 1e-5 else min(max(vertex, 0.02 * right), 0.5 * right)
    gamma = known[best][0]
    if best == len(known) - 1:
        vertex = (
            _vertex_from_slope(known[0][1], slope, gamma, known[best][1])
            if best == 1
            else _vertex(known[best - 2], known[best - 1], known[best])
        )
        if gamma < 1.0:
            return min(1.0, max(1.5 * gamma, min(vertex, 4.0 * gamma)))
        left = known[best - 1][0]
        return None if vertex >= 1.0 - tolerance else max(vertex, left + 0.1 * (1.0 - left))
    (left, low), (right, _) = known[best - 1], known[best + 1]
    vertex = _vertex(known[best - 1], known[best], known[best + 1])
    near, far = gamma - left, right - gamma
    if abs(vertex - gamma) <= tolerance * gamma:
        # Three points always lie on some parabola; believe it once the slope at zero, or a narrow bracket, agrees.
        if max(near, far) <= 0.5 * gamma:
            return None
        if (
            left == 0.0
            and slope is not None
            and abs(_vertex_from_slope(low, slope, gamma, known[best][1]) - gamma) <= (0.1 * gamma)
        ):
            return None
        return gamma + 0.4 * far if far > near else gamma - 0.4 * near
    if far > 5.0 * near:  # one end so high that it bends the parabola out of shape
        return max(gamma + 2.0 * near, min(vertex, gamma + 0.5 * far))
    if near > 5.0 * far:
        return min(gamma - 2.0 * far, max(vertex, gamma - 0.5 * near))
    return min(max(vertex, left + 0.1 * near), right - 0.1 * far)


def _vertex_from_slope(start: float, slope: float | None, gamma: float, value: float) -> float:
    """Minimum of the parabola with this start and slope that passes through (γ, value); ∞ if it opens downwards."""
    if slope is None:
        return torch.inf if value < start else 0.25 * gamma
    bend = value - start - slope * gamma
    return torch.inf if bend <= 0.0 else -slope * gamma * gamma / (2.0 * bend)


def _vertex(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Minimum of the parabola through three points in order of γ; ∞ if it opens downwards."""
    left, right = (b[1] - a[1]) / (b[0] - a[0]), (c[1] - b[1]) / (c[0] - b[0])
    bend = (right - left) / (c[0] - a[0])
    return torch.inf if bend <= 0.0 else 0.5 * (a[0] + b[0]) - 0.5 * left / bend
