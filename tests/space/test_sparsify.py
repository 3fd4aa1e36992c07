"""Trimming keeps the largest magnitudes."""

from __future__ import annotations

import pytest
import torch

from fwviz.space.sparsify import cancelled, disjoint_merge, elect_sign, kept_above, trim, trim_rows


@pytest.mark.parametrize(("density", "kept"), [(0.2, [1, 4]), (0.4, [1, 4, 5]), (1.0, list(range(6)))])
def test_trim_keeps_the_largest(density: float, kept: list[int]) -> None:
    delta = torch.tensor([0.1, -3.0, 0.2, -0.3, 2.0, 1.0])
    expected = torch.zeros(6)
    expected[kept] = delta[kept]
    found = trim(delta, density)
    assert found is delta
    torch.testing.assert_close(found, expected)


def test_trim_to_nothing_keeps_one() -> None:
    """The released rule keeps ⌊density·P⌋ + 1 entries, so density 0 leaves the largest."""
    assert trim(torch.tensor([0.5, -1.0, 0.25]), 0.0).tolist() == [0.0, -1.0, 0.0]


def test_the_two_counts() -> None:
    """Ranks of the threshold among 10 magnitudes: the released rule keeps one entry more."""
    assert [kept_above(10, d, "released") for d in (0.0, 0.2, 1.0)] == [9, 7, 0]
    assert [kept_above(10, d, "exact") for d in (0.0, 0.2, 1.0)] == [9, 8, 0]


def test_rows_are_trimmed_by_their_own_threshold_which_stays() -> None:
    block = torch.tensor([[1.0, -2.0, 3.0], [-0.5, 0.1, 0.0], [0.0, 1e-30, -5.0]])
    found = trim_rows(block, torch.tensor([2.0, 0.5, 0.0]))
    assert found is block
    assert found.tolist() == [[0.0, -2.0, 3.0], [-0.5, 0.0, 0.0], [0.0, pytest.approx(1e-30), -5.0]]


def test_the_merge_takes_what_has_the_elected_sign() -> None:
    block = torch.tensor([[1.0, -2.0, 0.0], [-3.0, -4.0, 0.0], [5.0, 5.0, 0.0]])
    sign = elect_sign(block)
    assert sign.tolist() == [1.0, -1.0, 0.0]
    assert disjoint_merge(block, sign, "mean").tolist() == [3.0, -3.0, 0.0]
    assert disjoint_merge(block, sign, "sum").tolist() == [6.0, -6.0, 0.0]
    assert disjoint_merge(block, -sign, "sum").tolist() == [-3.0, 5.0, 0.0]


def test_only_entries_that_cancel_out_are_cancelled() -> None:
    block = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert cancelled(block, elect_sign(block))
    assert not cancelled(block[:, 1:], elect_sign(block[:, 1:]))
