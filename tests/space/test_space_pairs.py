"""Pairs of task vectors: inner products, signs and the distribution of magnitudes, against plain loops."""

from __future__ import annotations

import pytest
import torch

from fwviz.space import pairs as pairs_module
from fwviz.space.magnitudes import BINS, density, histogram, quantiles
from fwviz.space.pairs import sign_conflicts
from fwviz.space.similarity import cosine
from fwviz.space.vectors import ResidentTaskVectors
from tests.toy import toy_vectors


def vectors_of(rows: torch.Tensor) -> ResidentTaskVectors:
    toy = toy_vectors(n=1)
    matrix = torch.zeros(len(rows), toy.layout.size)
    matrix[:, : rows.shape[1]] = rows
    return ResidentTaskVectors(toy.layout, [f"c{i}" for i in range(len(rows))], toy.base, matrix)


def test_a_block_is_a_piece_of_every_vector() -> None:
    vectors = toy_vectors(n=11)
    whole = torch.stack([vectors.vector(i) for i in range(11)])
    before = vectors.bytes_read
    assert torch.equal(vectors.block(3, 61), whole[:, 3:61])
    assert vectors.bytes_read - before == 11 * 58 * 4
    assert torch.equal(vectors.subset([4, 2]).block(0, 82), whole[[4, 2]])
    assert vectors.block(5, 5).shape == (11, 0)
    with pytest.raises(ValueError, match="does not lie"):
        vectors.block(3, 83)


def test_same_and_opposite_directions() -> None:
    row = torch.randn(82, generator=torch.Generator().manual_seed(1))
    vectors = vectors_of(torch.stack([row, 2 * row, -0.5 * row, torch.zeros(82)]))
    expected = torch.tensor([[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(cosine(vectors.gram(vectors.layout.groups("model"))[0]), expected, rtol=0, atol=1e-6)
    for weighted in (False, True):
        conflicts = sign_conflicts(vectors, 0, 82, weighted=weighted)
        torch.testing.assert_close(conflicts, (expected < 0).double(), rtol=0, atol=1e-6)


def test_signs_count_where_both_moved_and_weights_count_by_size() -> None:
    a = torch.tensor([1.0, 2.0, -3.0, 0.0, 0.0, 4.0])
    b = torch.tensor([5.0, -1.0, -1.0, 7.0, 0.0, -2.0])
    vectors = vectors_of(torch.stack([a, b]))
    assert float(sign_conflicts(vectors, 0, 82)[0, 1]) == pytest.approx(2 / 4)
    assert float(sign_conflicts(vectors, 0, 82, weighted=True)[0, 1]) == pytest.approx((2 + 8) / (5 + 2 + 3 + 8))
    assert float(sign_conflicts(vectors, 0, 2)[0, 1]) == pytest.approx(1 / 2)
    assert float(sign_conflicts(vectors, 4, 5)[0, 1]) == 0.0


def test_small_blocks_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = toy_vectors(n=5)
    whole = (sign_conflicts(vectors, 2, 80, weighted=True), histogram(vectors, 2, 80))
    monkeypatch.setattr(pairs_module, "_BLOCK_ELEMENTS", 15)
    again = (sign_conflicts(vectors, 2, 80, weighted=True), histogram(vectors, 2, 80))
    for first, second in zip(whole, again, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_quantiles_of_the_histogram_are_those_of_the_numbers() -> None:
    matrix = torch.randn(3, 82, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1e-6], [1.0], [0.0]])
    counts = histogram(vectors_of(matrix), 0, 82)
    assert counts.sum(dim=1).tolist() == [82, 82, 82]
    found = quantiles(counts, (0.05, 0.5, 0.95, 1.0))
    for row in range(2):
        exact = matrix[row].abs().double().quantile(torch.tensor([0.05, 0.5, 0.95, 1.0], dtype=torch.float64))
        torch.testing.assert_close(found[row], exact, rtol=0.15, atol=0)
    assert found[2].tolist() == [0.0] * 4
    assert (found.diff(dim=1) >= 0).all()


def test_half_zeros_have_a_median_at_zero() -> None:
    row = torch.zeros(1, 82)
    row[0, :30] = 0.25
    found = quantiles(histogram(vectors_of(row), 0, 82), (0.5, 0.9))
    assert float(found[0, 0]) == 0.0
    assert float(found[0, 1]) == pytest.approx(0.25, rel=0.13)


def test_the_density_integrates_to_the_share_that_moved() -> None:
    row = torch.randn(1, 82, generator=torch.Generator().manual_seed(3))
    row[0, :41] = 0.0
    at = torch.logspace(-6, 4, 4001, dtype=torch.float64)
    found = density(histogram(vectors_of(row), 0, 82)[0], at)
    assert float(torch.trapezoid(found, at.log10())) == pytest.approx(0.5, abs=1e-6)
    assert (found >= 0).all()


def test_the_density_is_that_of_the_logarithm() -> None:
    """Against the law itself: of log-normal changes the density over log₁₀ is a bell of known place and width."""
    many = 40_000
    draws = torch.randn(many, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    codes = (10 ** (0.3 * draws - 2)).float().view(torch.int32) >> 20
    counts = torch.bincount(codes, minlength=BINS)
    at = torch.tensor([10**-2.6, 10**-2.0, 10**-1.7], dtype=torch.float64)
    bell = torch.exp(-((at.log10() + 2) / 0.3).square() / 2) / (0.3 * (2 * torch.pi) ** 0.5)
    torch.testing.assert_close(density(counts, at), bell, rtol=0.05, atol=0)


def test_changes_of_one_size_are_one_narrow_bell() -> None:
    counts = histogram(vectors_of(torch.full((1, 82), 0.25)), 0, 82)[0]
    at = torch.tensor([0.05, 0.25, 1.2, 0.0], dtype=torch.float64)
    there = density(counts, at)
    assert float(there[1]) > 4
    assert float(there[[0, 2, 3]].max()) < 1e-6
    assert density(torch.zeros_like(counts), at).tolist() == [0.0] * 4
