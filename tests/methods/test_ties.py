"""TIES against its definition, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.methods.ties import Settings, ties
from fwviz.space import blocks as blocks_module
from fwviz.space.layout import build_layout
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import Problem
from tests.toy import toy_problem


def problem_of(rows: Sequence[Sequence[float]], tensors: int = 1) -> Problem:
    """A problem whose task vectors are the given rows, cut into equal tensors."""
    matrix = torch.tensor(rows)
    size = matrix.shape[1] // tensors
    layout = build_layout({f"visual.layers.{j}.weight": (size,) for j in range(tensors)})
    base = torch.linspace(-1, 1, layout.size)
    vectors = ResidentTaskVectors(layout, tuple(f"c{i}" for i in range(len(rows))), base, matrix)
    return replace(toy_problem(), vectors=vectors)


def delta_of(problem: Problem, **settings: Any) -> Tensor:
    (step,) = list(ties(problem, Settings(**settings)))
    assert step.delta is not None
    return step.delta


def by_definition(matrix: Tensor, kept: list[int], mean: bool, majority: bool = True) -> Tensor:
    """Loops over coordinates; ``kept`` says how many entries of each row stay."""
    trimmed = torch.zeros_like(matrix)
    for i, count in enumerate(kept):
        top = matrix[i].abs().argsort(descending=True)[:count]
        trimmed[i, top] = matrix[i, top]
    signs = [float(torch.sign(column.sum())) for column in trimmed.t()]
    fallback = float(torch.sign(torch.tensor(sum(signs)))) if majority else 1.0
    result = []
    for column, sign in zip(trimmed.t().tolist(), signs, strict=True):
        agreeing = [x for x in column if x * (sign or fallback) > 0]
        result.append(sum(agreeing) / (len(agreeing) if mean else 1) if agreeing else 0.0)
    return torch.tensor(result)


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("cells", [1 << 18, 20])
def test_global_trim_is_the_definition(merge: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the coordinates are walked in many pieces."""
    monkeypatch.setattr(blocks_module, "_CELLS", cells)
    problem = toy_problem()
    vectors: Any = problem.vectors
    found = delta_of(problem, density=0.3, merge=merge, scale=0.7)
    count = int(0.3 * vectors.layout.size) + 1
    expected = 0.7 * by_definition(vectors.matrix, [count] * vectors.n, merge == "mean")
    torch.testing.assert_close(found, expected)
    assert bool((found == 0).any())


def test_tensor_trim_keeps_a_share_of_every_tensor() -> None:
    problem = toy_problem()
    vectors: Any = problem.vectors
    parts = [
        by_definition(vectors.matrix[:, a:b], [max(int(0.3 * (b - a)), 1)] * vectors.n, True)
        for a, b in problem.groups("tensor").ranges()
    ]
    torch.testing.assert_close(delta_of(problem, density=0.3, trim_scope="tensor"), torch.cat(parts))


def test_a_cancelled_coordinate_takes_the_sign_of_most() -> None:
    rows = [[1.0, -3.0, -2.0, 0.0], [-1.0, -5.0, -2.0, 0.0]]
    mean = {"density": 1.0, "merge": "mean"}
    torch.testing.assert_close(delta_of(problem_of(rows), **mean), torch.tensor([-1.0, -4.0, -2.0, 0.0]))
    plus = delta_of(problem_of(rows), zero_sign="plus", **mean)
    torch.testing.assert_close(plus, torch.tensor([1.0, -4.0, -2.0, 0.0]))
    opposite = [[1.0, -3.0], [-1.0, 3.0]]  # no coordinate has a sign, so there is no majority
    assert not delta_of(problem_of(opposite), **mean).any()


def test_the_majority_counts_coordinates_over_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "_CELLS", 2)
    rows = [[4.0, 9.0, -1.0, -1.0, -1.0], [-4.0, 9.0, -1.0, -1.0, -1.0]]
    found = delta_of(problem_of(rows), density=1.0)
    torch.testing.assert_close(found, torch.tensor([-4.0, 9.0, -1.0, -1.0, -1.0]))


def test_the_majority_is_of_signs_not_of_magnitudes() -> None:
    rows = [[4.0, 99.0, -1.0, -1.0], [-4.0, 99.0, -1.0, -1.0]]
    assert float(delta_of(problem_of(rows), density=1.0)[0]) == -4.0


def test_equal_magnitudes_at_the_threshold_all_stay() -> None:
    rows = [[1.0, -1.0, 1.0, 0.5]]
    torch.testing.assert_close(delta_of(problem_of(rows), density=0.25), torch.tensor([1.0, -1.0, 1.0, 0.0]))
