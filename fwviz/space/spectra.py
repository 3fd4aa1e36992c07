"""Spectra of many checkpoints together: profiles by ring, and how much they differ at each frequency.

Everything reads one weight matrix of a bounded number of checkpoints at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.space.spectrum import amplitude, half_weights, radial_frequency
from fwviz.types import FwvizError, ParamLayout, TaskVectors

_STACK_ELEMENTS = 1 << 24  # 64 MiB of float32, beside transforms of the same size


@dataclass(frozen=True)
class Matrix:
    """A weight matrix in the flat vector: [start, stop) is its place, (height, width) its shape."""

    name: str
    start: int
    stop: int
    shape: tuple[int, int]


def matrices(layout: ParamLayout, start: int, stop: int) -> list[Matrix]:
    """The two-dimensional tensors inside [start, stop), at least 2 × 2; FwvizError if there is none."""
    places = zip(layout.names, layout.shapes, layout.offsets[:-1], layout.offsets[1:], strict=True)
    found = [
        Matrix(name, a, b, (shape[0], shape[1]))
        for name, shape, a, b in places
        if start <= a and b <= stop and len(shape) == 2 and min(shape) >= 2
    ]
    if not found:
        raise FwvizError("there is no weight matrix here, and only matrices have a spectrum: choose another group.")
    return found


def stacks(vectors: TaskVectors, matrix: Matrix) -> Iterator[tuple[slice, Tensor]]:
    """Task vectors of one matrix, as many checkpoints at a time as fit into 64 MiB: their rows and (r, H, W)."""
    together = max(1, _STACK_ELEMENTS // (matrix.stop - matrix.start))
    for first in range(0, vectors.n, together):
        rows = range(first, min(first + together, vectors.n))
        part = vectors if len(rows) == vectors.n else vectors.subset(rows)
        yield slice(rows.start, rows.stop), part.block(matrix.start, matrix.stop).view(-1, *matrix.shape)


@dataclass(frozen=True)
class Rings:
    """Spectra in ``bins`` rings of equal width over ρ in [0, 1], all matrices together.

    ``counts`` (bins,) coefficients of the full planes; ``amplitude`` (n, bins) their mean, NaN in an empty ring;
    ``energy`` (n, bins) Σ A²; ``variance`` (bins,) the mean over the ring of the variance of A over the checkpoints.
    ``interference`` is the mean of that variance over the frequencies of each matrix, and then over the matrices
    (FREE-Merging, Table 1); ``kept`` the part of it at ρ ≥ cutoff; ``energy_kept`` (n,) the share of Σ A² there.
    """

    counts: Tensor
    amplitude: Tensor
    energy: Tensor
    variance: Tensor
    interference: float
    kept: float
    energy_kept: Tensor


def rings(vectors: TaskVectors, found: Sequence[Matrix], *, bins: int = 32, cutoff: float = 0.0) -> Rings:
    """Radial profiles of every checkpoint and the variance between checkpoints per ring, in one pass.

    A_k = |rfft2(τ_k)| / √(HW); variances are divided by n. ``cutoff`` is that of a high-pass filter, which sets A to 0
    below it and leaves it alone above.
    """
    counts, spread = torch.zeros(bins, dtype=torch.float64), torch.zeros(bins, dtype=torch.float64)
    total, energy = (torch.zeros(vectors.n, bins, dtype=torch.float64) for _ in range(2))
    whole, passed = torch.zeros(vectors.n, dtype=torch.float64), torch.zeros(vectors.n, dtype=torch.float64)
    interference = kept = 0.0
    for matrix in found:
        ring, weights, above = _plane(matrix, bins, cutoff)
        mean = square = torch.zeros(())
        for rows, stack in stacks(vectors, matrix):
            values = amplitude(stack).cpu()
            mean, square = _joined((rows.start, mean, square), values)
            flat = values.flatten(1).double()
            total[rows] += _into(flat * weights, ring, bins)
            power = flat.square_().mul_(weights)
            energy[rows] += _into(power, ring, bins)
            whole[rows] += power.sum(dim=1)
            passed[rows] += power[:, above].sum(dim=1)
        variance = (square / vectors.n).flatten().double() * weights
        counts += _into(weights[None], ring, bins)[0]
        spread += _into(variance[None], ring, bins)[0]
        area = float(weights.sum())
        interference += float(variance.sum()) / area / len(found)
        kept += float(variance[above].sum()) / area / len(found)
    return Rings(
        counts=counts,
        amplitude=total / counts,
        energy=energy,
        variance=spread / counts,
        interference=interference,
        kept=kept,
        energy_kept=torch.where(whole > 0, passed / whole, 0.0),
    )


def amplitude_products(vectors: TaskVectors, found: Sequence[Matrix]) -> Tensor:
    """K[i, j] = mean over matrices of Σ_f A_i(f)·A_j(f) / (HW): (n, n) float64.

    It holds the interference of every subset S of the checkpoints, see :func:`subset_interference`.
    """
    products = torch.zeros(vectors.n, vectors.n, dtype=torch.float64)
    for matrix in found:
        _, weights, _ = _plane(matrix, 1, 0.0)
        scale = (weights / weights.sum() / len(found)).sqrt().float()
        for left, first in stacks(vectors, matrix):
            a = amplitude(first).cpu().flatten(1) * scale
            for right, second in stacks(vectors, matrix):
                if right.start < left.start:
                    continue
                b = a if right == left else amplitude(second).cpu().flatten(1) * scale
                part = (a @ b.t()).double()
                products[left, right] += part
                if right != left:
                    products[right, left] += part.t()
    return products


def subset_interference(products: Tensor, rows: Sequence[int]) -> float:
    """Mean variance of the amplitudes of some checkpoints: mean_k K_kk − mean_kl K_kl over the subset."""
    part = products[list(rows)][:, list(rows)]
    return max(float(part.diagonal().mean() - part.mean()), 0.0)


def _plane(matrix: Matrix, bins: int, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the half plane, flat: the ring of each coefficient, its weight, and whether a high-pass keeps it."""
    height, width = matrix.shape
    rho = radial_frequency(height, width).flatten()
    ring = rho.mul(bins).floor().clamp_(max=bins - 1).long()
    weights = half_weights(width).expand(height, -1).flatten()
    return ring, weights, rho >= cutoff - 1e-12


def _into(values: Tensor, ring: Tensor, bins: int) -> Tensor:
    """Sums per ring: (r, coefficients) → (r, bins) float64."""
    return torch.zeros(values.shape[0], bins, dtype=torch.float64).index_add_(1, ring, values.double())


def _joined(known: tuple[int, Tensor, Tensor], values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of the first rows, joined by more: Chan, Golub & LeVeque (1983)."""
    before, mean, square = known
    count = values.shape[0]
    own = values.mean(dim=0)
    apart = (values - own).square_().sum(dim=0)
    if not before:
        return own, apart
    delta = own - mean
    return mean + delta * (count / (before + count)), square + apart + delta.square() * (
        before * count / (before + count)
    )
