"""Trimming keeps the largest magnitudes."""

from __future__ import annotations

import pytest
import torch

from fwviz.space.sparsify import trim


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
