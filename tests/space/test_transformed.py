"""Task vectors changed whenever they are read: the same from every storage, and nothing of size n·P is held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fwviz.bench.synthetic import random_base, vit_layout, write_pool
from fwviz.space.transformed import TransformedTaskVectors, elected, masked
from fwviz.space.vectors import StreamedTaskVectors
from tests.toy import toy_vectors


def test_a_mask_multiplies_every_vector() -> None:
    vectors = toy_vectors()
    mask = torch.rand(vectors.layout.size, generator=torch.Generator().manual_seed(0))
    hidden = masked(vectors, mask)
    groups = vectors.layout.groups("tensor")
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    plain = vectors.combine(rows, groups) - vectors.base
    torch.testing.assert_close(hidden.combine(rows, groups), vectors.base + mask * plain, rtol=1e-4, atol=1e-5)
    slope = torch.randn(vectors.layout.size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(hidden.scores(slope, groups), vectors.scores(mask * slope, groups), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden.vector(3), mask * vectors.vector(3))
    assert torch.equal(vectors.vector(3), toy_vectors().vector(3))


def test_subsets_keep_what_was_elected_by_all() -> None:
    chosen = elected(toy_vectors(), 0.4)
    some = chosen.subset([3, 1])
    assert some.names == ("c3", "c1")
    assert torch.equal(some.vector(0), chosen.vector(3))
    assert torch.equal(some.subset([1]).vector(0), chosen.vector(1))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_elected_by_definition(density: float) -> None:
    vectors = toy_vectors()
    size = vectors.layout.size
    kept = min(int(density * size) + 1, size)
    trimmed = torch.zeros_like(vectors.matrix)
    for row, out in zip(vectors.matrix, trimmed, strict=True):
        top = row.abs().topk(kept).indices
        out[top] = row[top]
    sign = trimmed.sum(dim=0).sign()
    found = elected(vectors, density)
    for i in range(5):
        assert torch.equal(found.vector(i), torch.where(trimmed[i].sign() == sign, trimmed[i], 0.0))


def test_both_storages_agree(tmp_path: Path) -> None:
    layout = vit_layout(width=24, blocks=2)
    files = list(write_pool(tmp_path, layout, 3, torch.float32))
    streamed = StreamedTaskVectors(layout, ("a", "b", "c"), random_base(layout, torch.float32), files)
    for change in (lambda v: elected(v, 0.2), lambda v: masked(v, torch.linspace(0, 2, layout.size))):
        one: TransformedTaskVectors = change(streamed)
        other: TransformedTaskVectors = change(streamed.resident())
        for i in range(3):
            assert torch.equal(one.vector(i), other.vector(i))
        before = streamed.bytes_read
        one.vector(1)
        assert streamed.bytes_read - before == layout.size * 4
        assert one.bytes_read == streamed.bytes_read
