"""Truncated decompositions and polar factors against full singular value decompositions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fwviz.space.subspace import polar, truncated_svd


def decaying(height: int, width: int, smallest: float, seed: int = 0) -> Tensor:
    """Singular values that fall evenly in the logarithm from 1 to ``smallest``."""
    random = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(height, min(height, width), generator=random, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(width, min(height, width), generator=random, dtype=torch.float64))
    values = torch.logspace(0, torch.tensor(smallest).log10().item(), min(height, width), dtype=torch.float64)
    return ((u * values) @ v.t()).float()


@pytest.mark.parametrize("shape", [(20, 20), (12, 40), (40, 12)])
@pytest.mark.parametrize("smallest", [0.5, 1e-2, 1e-5])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_the_leading_triplets_are_those_of_the_full_decomposition(
    shape: tuple[int, int], smallest: float, rank: int
) -> None:
    matrix = decaying(*shape, smallest)
    u, s, v = truncated_svd(matrix, rank)
    full_u, full_s, full_v = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert s.shape == (rank,)
    torch.testing.assert_close(s.double(), full_s[:rank], rtol=1e-4, atol=1e-7)
    eye = torch.eye(rank)
    torch.testing.assert_close(u.t() @ u, eye, rtol=0, atol=2e-5)
    torch.testing.assert_close(v @ v.t(), eye, rtol=0, atol=2e-5)
    best = (full_u[:, :rank] * full_s[:rank]) @ full_v[:rank]
    torch.testing.assert_close(((u * s) @ v).double(), best, rtol=0, atol=2e-5)


def test_directions_of_rounding_are_left_out() -> None:
    left, right = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)), torch.randn(2, 8)
    u, s, v = truncated_svd(left @ right, 5)
    assert s.shape == (2,)
    torch.testing.assert_close((u * s) @ v, left @ right, rtol=1e-4, atol=1e-5)
    assert truncated_svd(torch.zeros(3, 4), 2)[1].numel() == 0
    with pytest.raises(ValueError, match="rank"):
        truncated_svd(left, 0)


@pytest.mark.parametrize("shape", [(20, 20), (20, 7), (7, 20)])
@pytest.mark.parametrize("smallest", [0.5, 1e-3])
def test_the_polar_factor_drops_the_singular_values(shape: tuple[int, int], smallest: float) -> None:
    matrix = decaying(*shape, smallest)
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(polar(matrix).double(), u @ v, rtol=0, atol=2e-6 / smallest)


def test_the_polar_factor_of_dependent_columns_is_zero_where_they_vanish() -> None:
    column = torch.tensor([[3.0], [4.0]])
    found = polar(torch.cat([column, column], dim=1))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.6], [0.8, 0.8]]) / 2**0.5)
    assert not polar(torch.zeros(3, 2)).any()
