"""Singular subspaces of task vectors: truncated decompositions and the nearest matrix with orthonormal columns.

Both go through the Gram matrix of the shorter side, whose eigenvectors cost a fraction of a singular value
decomposition of a long matrix. Squaring halves the digits, so where they would not suffice it is done in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fwviz.space.wide import home

_ENOUGH = 0.03  # least σ_k / σ_1 that a float32 Gram matrix resolves to a few parts in 10⁴
_NOTHING = 1e-6  # σ / σ_1 below this is rounding of float32 entries
_LONG = 0.25  # σ / σ_1 from which on a float32 Gram matrix is as good as the matrix
_SLICES = 4  # of a symmetric product: 5/8 of the work of the whole; more of them are too narrow to be fast
_VANISHING = 1e-5  # σ / σ_1 below this is rounding of columns that were computed in float32


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading singular triplets: (H, W) → U (H, r), S (r,) descending, Vᵀ (r, W), float32.

    Triplets whose singular value is rounding (below 1e-6 of the largest) are left out, so r may be less than ``rank``:
    they would add nothing to the matrix, but arbitrary directions to its subspace.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, but must be at least 1")
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = truncated_svd(matrix.t(), rank)
        return right.t(), values, left.t()
    where, matrix = matrix.device, matrix.to(home(matrix.device)).float()
    kept = min(rank, matrix.shape[0])
    basis = _leading(matrix, kept)
    if basis is None:
        double = matrix.double()
        basis = torch.linalg.eigh(_gram(double))[1][:, -kept:].float()
    # Inside the subspace the small problem is solved anew, so that triplets have all digits of float32.
    core = basis.t() @ matrix
    small = core.double()
    values, turn = torch.linalg.eigh(_gram(small))
    values, turn = values.flip(0).clamp_(min=0.0).sqrt_(), turn.flip(1)
    values = values[values > _NOTHING * values[:1]]
    turn = turn[:, : len(values)]
    right = (turn.t() @ small).div_(values[:, None])
    return (basis @ turn.float()).to(where), values.float().to(where), right.float().to(where)


def _leading(matrix: Tensor, kept: int) -> Tensor | None:
    """Eigenvectors (H, kept) of the float32 Gram matrix, None where their values lie too close to its rounding."""
    values, vectors = torch.linalg.eigh(_gram(matrix))
    if not bool(values[-kept] >= _ENOUGH**2 * values[-1]):
        return None
    return vectors[:, -kept:]


def _gram(rows: Tensor) -> Tensor:
    """The lower triangle of M·Mᵀ, which is all that ``eigh`` reads, in a few slices; above it not everything is set."""
    height = len(rows)
    gram = rows.new_zeros(height, height)
    step = max(-(-height // _SLICES), 1)
    for start in range(0, height, step):
        columns = slice(start, start + step)
        gram[start:, columns] = rows[start:] @ rows[columns].t()
    return gram


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (rows, if it is wide), M(MᵀM)^(−½): (H, W) → (H, W) float32.

    It is UVᵀ of M = UΣVᵀ. Directions in which M has rounding only are mapped to 0 rather than to anything.

    The eigenvectors V of the float32 Gram matrix split the directions: where M is long, M·V over its lengths has digits
    enough; the few others, made orthogonal to those, are solved again in float64.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.t()).t()
    where, matrix = matrix.device, matrix.to(home(matrix.device)).float()
    if not matrix.shape[1]:
        return matrix.to(where)
    squares, vectors = torch.linalg.eigh(_gram(matrix.t()))
    longest = squares[-1].clamp(min=0.0)
    short = int((squares < _LONG**2 * longest).sum()) if bool(longest > 0) else len(squares)
    images = matrix @ vectors
    thin, long = images[:, :short], images[:, short:].div_(squares[short:].clamp(min=1e-30).sqrt())
    if short:
        thin = _orthonormal(thin - long @ (long.t() @ thin), float(longest.sqrt()))
    return (torch.cat([thin, long], dim=1) @ vectors.t()).to(where)


def _orthonormal(matrix: Tensor, longest: float) -> Tensor:
    """Polar factor of a thin matrix in float64; what is rounding beside ``longest`` is mapped to 0."""
    double = matrix.double()
    squares, vectors = torch.linalg.eigh(_gram(double.t()))
    scales = torch.where(squares > (_VANISHING * longest) ** 2, squares.clamp(min=1e-300).rsqrt(), 0.0)
    return (double @ (vectors * scales @ vectors.t())).float()
