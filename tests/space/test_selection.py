"""Order statistics are exact: against a full sort, on rows made to mislead the sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.space import selection
from fwviz.space.selection import order_statistics

SIZE = 40_000


def rows(kind: str) -> Tensor:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(3, SIZE, generator=random)
    if kind == "ties":
        return (3 * x).round()
    if kind == "mostly zero":
        return torch.where(torch.rand(3, SIZE, generator=random) < 0.7, 0.0, x)
    if kind == "sorted":
        return x.sort(dim=1).values
    if kind == "constant":
        return torch.full_like(x, 2.5)
    if kind == "one scale per region":
        return x * torch.linspace(-6, 6, SIZE).exp()
    if kind == "hidden":  # a region no window of the sample touches
        x[:, 5_000:5_040] = 1e3
    return x


KINDS = ["normal", "ties", "mostly zero", "sorted", "constant", "one scale per region", "hidden"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [None, [(0, 9), (9, 17_000), (17_000, SIZE)]])
def test_ranks_are_those_of_a_sort(
    kind: str, pieces: list[tuple[int, int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_DIRECT", 0)
    monkeypatch.setattr(selection, "_CELLS", 9_000)
    monkeypatch.setattr(selection, "_WINDOWS", 32)
    monkeypatch.setattr(selection, "_WIDTH", 16)
    x = rows(kind)
    ranks = [0, 4, 12_345, SIZE // 2, 31_999, SIZE - 30, SIZE - 1]
    found = order_statistics(lambda a, b: x[:, a:b].clone(), 0, SIZE, ranks, 3, pieces=pieces)
    assert torch.equal(found, x.sort(dim=1).values[:, ranks])


def test_only_the_range_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows("normal")
    for direct in (1 << 30, 0):
        monkeypatch.setattr(selection, "_DIRECT", direct)
        monkeypatch.setattr(selection, "_WINDOWS", 8)
        monkeypatch.setattr(selection, "_WIDTH", 8)
        found = order_statistics(lambda a, b: x[:, a:b].clone(), 100, 1_100, [0, 500, 999], 3)
        assert torch.equal(found, x[:, 100:1_100].sort(dim=1).values[:, [0, 500, 999]])


def test_few_values_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory: the bracket holds a small share of the row."""
    monkeypatch.setattr(selection, "_DIRECT", 0)
    x = torch.randn(1, 3_000_000, generator=torch.Generator().manual_seed(0))
    collected = []
    smallest = selection._smallest
    monkeypatch.setattr(selection, "_smallest", lambda v, r: (collected.append(v.size), smallest(v, r))[1])
    ordered = x.sort(dim=1).values
    # A bracket that misses, because it is a hundred times too narrow, is widened by a little, not to all that is left.
    for sigmas in (selection._SIGMAS, selection._SIGMAS / 100):
        monkeypatch.setattr(selection, "_SIGMAS", sigmas)
        for rank in (2_400_000, 300, 1_500_000):
            found = order_statistics(lambda a, b: x[:, a:b].clone(), 0, x.shape[1], [rank], 1)
            assert torch.equal(found[0, 0], ordered[0, rank])
    assert len(collected) == 6
    assert all(0 < count < 0.03 * x.shape[1] for count in collected)


def test_impossible_ranks_are_refused() -> None:
    for rank in (-1, 5):
        with pytest.raises(ValueError, match="ranks"):
            order_statistics(lambda a, b: torch.from_numpy(np.zeros((1, b - a), np.float32)), 0, 5, [rank], 1)
