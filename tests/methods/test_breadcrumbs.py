"""Breadcrumbs against its definition, row by row and tensor by tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.methods.breadcrumbs import Settings, breadcrumbs
from fwviz.space import blocks as blocks_module
from fwviz.types import Problem
from tests.toy import toy_problem


def delta_of(problem: Problem, **settings: Any) -> Tensor:
    (step,) = list(breadcrumbs(problem, Settings(**settings)))
    assert step.delta is not None
    return step.delta


def masked(row: Tensor, density: float, outliers: float) -> Tensor:
    """The ⌊density·C⌋ largest that are left when the ⌊outliers·C⌋ largest are gone."""
    order = row.abs().argsort(descending=True)
    first = int(outliers * len(row))
    kept = order[first : first + int(density * len(row))]
    out = torch.zeros_like(row)
    out[kept] = row[kept]
    return out


@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize(("density", "outliers"), [(0.5, 0.3), (0.9, 0.0), (0.9, 0.4), (0.1, 0.3)])
@pytest.mark.parametrize("cells", [1 << 18, 15])
def test_is_the_definition(
    scope: str, density: float, outliers: float, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "_CELLS", cells)
    problem = toy_problem()
    layout = problem.vectors.layout
    expected = torch.zeros(layout.size)
    for i in range(problem.vectors.n):
        tau = problem.vectors.vector(i)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            rows = layout.view(tau, name).reshape(-1, shape[-1] if scope == "row" else tau[:0].new_empty(shape).numel())
            part = torch.stack([masked(row, density, outliers) for row in rows])
            layout.view(expected, name).add_(0.4 * part.view(shape))
    found = delta_of(problem, density=density, outliers=outliers, mask_scope=scope, scale=0.4)
    torch.testing.assert_close(found, expected)


def test_the_filter_comes_first() -> None:
    """At the highest cutoff nearly nothing of a matrix is left, while vectors stay."""
    problem = toy_problem()
    plain, filtered = (delta_of(problem, density=1.0, outliers=0.0, high_pass=cutoff) for cutoff in (0.0, 0.9))
    layout = problem.vectors.layout
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        a, b = layout.view(plain, name), layout.view(filtered, name)
        if len(shape) == 2:
            assert float(b.norm()) < 0.8 * float(a.norm())
        else:
            torch.testing.assert_close(a, b)
