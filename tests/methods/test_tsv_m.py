"""TSV-M against full singular value decompositions, matrix by matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwviz.methods.tsv_m import Settings, tsv_m
from fwviz.space.spectrum import high_pass
from fwviz.types import Problem
from tests.toy import toy_problem


def delta_of(problem: Problem, **settings: Any) -> Tensor:
    (step,) = list(tsv_m(problem, Settings(**settings)))
    assert step.delta is not None
    return step.delta


def by_definition(matrices: list[Tensor]) -> Tensor:
    """Leading triplets of every task side by side, U and Vᵀ replaced by the nearest orthogonal ones."""
    share = max(min(matrices[0].shape) // len(matrices), 1)
    parts = [torch.linalg.svd(matrix.double(), full_matrices=False) for matrix in matrices]
    u = torch.cat([u[:, :share] for u, _, _ in parts], dim=1)
    s = torch.cat([s[:share] for _, s, _ in parts])
    v = torch.cat([v[:share] for _, _, v in parts])
    pu, _, qu = torch.linalg.svd(u, full_matrices=False)
    pv, _, qv = torch.linalg.svd(v, full_matrices=False)
    return (pu @ qu @ torch.diag(s) @ pv @ qv).float()


def test_is_the_definition_for_two_and_three_checkpoints() -> None:
    for n in (2, 3):
        problem: Any = toy_problem(n=n, tasks=2)
        layout = problem.vectors.layout
        for cutoff in (0.0, 0.3):
            found = delta_of(problem, scale=0.8, high_pass=cutoff)
            for name, shape in zip(layout.names, layout.shapes, strict=True):
                parts = [layout.view(problem.vectors.vector(i), name) for i in range(n)]
                if len(shape) == 2:
                    expected = by_definition([high_pass(part, cutoff) for part in parts])
                else:
                    expected = torch.stack(parts).mean(dim=0)
                torch.testing.assert_close(layout.view(found, name), 0.8 * expected, rtol=1e-4, atol=1e-4)


def test_one_checkpoint_is_itself() -> None:
    problem = toy_problem(n=1, tasks=1)
    torch.testing.assert_close(delta_of(problem), problem.vectors.vector(0), rtol=1e-4, atol=1e-5)


def test_copies_of_one_checkpoint_keep_their_leading_directions() -> None:
    """Dependent columns are no reason for anything but a smaller matrix: finite, and of the copies' own directions."""
    problem: Any = toy_problem(n=3)
    problem.vectors.matrix[1:] = problem.vectors.matrix[0]
    found = delta_of(problem)
    assert found.isfinite().all()
    layout = problem.vectors.layout
    name = next(name for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) == 2)
    u, s, v = torch.linalg.svd(layout.view(problem.vectors.vector(0), name), full_matrices=False)
    share = max(len(s) // 3, 1)
    # polar of [U U U] is [U U U]/√3, so the sum of three copies comes back once: U S Vᵀ.
    expected = (u[:, :share] * s[:share]) @ v[:share]
    torch.testing.assert_close(layout.view(found, name), expected, rtol=1e-3, atol=1e-4)
