"""Trimming keeps the largest magnitudes."""

from __future__ import annotations

import pytest
import torch

from fwviz.space.sparsify import (
    ascending_columns,
    cancelled,
    disjoint_merge,
    elect_sign,
    kept_above,
    ranked_drop,
    trim,
    trim_rows,
)


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


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-41, 1e30])
@pytest.mark.parametrize("width", [1, 2, 40, 700])
def test_columns_come_in_the_order_of_a_stable_sort(scale: float, width: int) -> None:
    """From the smallest number a float32 can hold to the largest, and with as many ties as half precision leaves."""
    random = torch.Generator().manual_seed(0)
    keys = scale * torch.randn(30, width, generator=random).abs()
    keys[10:20] = scale * torch.randint(5, (10, width), generator=random)
    keys[20] = 0
    keys[21, 0] = 3e38
    assert torch.equal(ascending_columns(keys), keys.argsort(dim=1, stable=True))


def test_an_entry_is_judged_by_the_draw_and_the_probability_of_its_rank() -> None:
    rows = torch.tensor([[-4.0, 1.0, 1.0, -0.5, 2.0]])  # ranks 4, 1, 2, 0, 3; p = 0.1, 0.3, 0.5, 0.7, 0.9
    draws = torch.tensor([[0.05, 0.31, 0.49, 0.71, 0.89]])
    found = ranked_drop(rows, 0.5, 0.4, draws)
    assert found is rows
    torch.testing.assert_close(found, torch.tensor([[-4 / 0.9, 0.0, 1 / 0.5, -0.5 / 0.1, 0.0]]))
