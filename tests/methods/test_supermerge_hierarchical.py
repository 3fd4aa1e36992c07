"""The tree, what each node learns from, and that composing coefficients is merging merged models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.methods import supermerge_hierarchical as module
from fwviz.methods.supermerge import Settings as FlatSettings
from fwviz.methods.supermerge import supermerge
from fwviz.methods.supermerge_hierarchical import Settings, supermerge_hierarchical
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import Problem, Step
from tests.toy import Quadratic, toy_problem, toy_vectors

QUICK: dict[str, Any] = {"updates": 12, "batch_size": 0, "learning_rate": 0.1}


def completed(problem: Problem, **values: Any) -> list[Step]:
    steps = supermerge_hierarchical(problem, Settings(**{**QUICK, **values}))
    return [step for step in steps if step.inner == 0]


def theta(problem: Problem, step: Step) -> Tensor:
    assert step.coefficients is not None
    return problem.vectors.combine(step.coefficients, problem.groups(step.granularity))


def similar_pool(order: Sequence[int] = (0, 1, 2, 3)) -> Problem:
    """Checkpoints a, b point one way, c, d another."""
    problem = toy_problem(n=2, tasks=2)
    matrix = torch.stack([problem.vectors.vector(i // 2) for i in range(4)])
    matrix += 0.2 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(3))
    vectors = ResidentTaskVectors(
        problem.vectors.layout, [("a", "b", "c", "d")[i] for i in order], problem.vectors.base, matrix[list(order)]
    )
    return Problem(vectors, problem.objective)


def test_composed_coefficients_equal_an_explicit_merge_of_merged_models() -> None:
    """Stage one by plain SuperMerge on each pair, its results saved as checkpoints of a new pool, stage two on that."""
    problem = similar_pool()
    nodes = completed(problem, weight_decay=0.01)
    assert len(nodes) == 4
    flat = FlatSettings(**QUICK, weight_decay=0.01)
    merged = []
    for pair, node in (([0, 1], nodes[1]), ([2, 3], nodes[2])):
        part = replace(problem, vectors=problem.vectors.subset(pair))
        last = list(supermerge(part, flat))[-1]
        assert last.coefficients is not None
        merged.append(theta(part, last))
        torch.testing.assert_close(theta(problem, node), merged[-1], rtol=0, atol=1e-5)
        assert (node.coefficients[:, [i for i in range(4) if i not in pair]] == 0).all()  # type: ignore[index]
    base = problem.vectors.base
    above = ResidentTaskVectors(problem.vectors.layout, ("ab", "cd"), base, torch.stack(merged) - base)
    explicit = Problem(above, problem.objective)
    root = list(supermerge(explicit, flat))[-1]
    torch.testing.assert_close(theta(problem, nodes[3]), theta(explicit, root), rtol=0, atol=1e-4)
    assert nodes[3].loss == pytest.approx(root.loss, rel=1e-4)


def test_the_similar_merge_first_in_whatever_order_they_come() -> None:
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        notes = [step.note for step in completed(similar_pool(order))]
        assert "a with b" in notes[1]
        assert "c with d" in notes[2]
        assert "a+b with c+d" in notes[3]
    given = [step.note for step in completed(similar_pool((2, 0, 3, 1)), grouping="order")]
    assert "c with a" in given[1]
    assert "d with b" in given[2]


class Watched(Quadratic):
    """Remembers which tasks each gradient was asked for."""

    def gradient(self, theta: Tensor, **values: Any) -> tuple[Tensor, Tensor]:
        self.asked = [*getattr(self, "asked", []), values["tasks"]]
        return super().gradient(theta, **values)


def test_a_node_sees_the_data_of_its_own_tasks_only() -> None:
    problem = similar_pool()
    quadratic: Any = problem.objective
    watched = Watched(quadratic.tasks, quadratic.centres, quadratic.weights, quadratic.noise, quadratic.shapes)
    owned = Problem(problem.vectors, watched, owners=("t0", "t0", "elsewhere", ""))
    notes = [step.note for step in completed(owned, updates=2)]
    assert watched.asked == [["t0"]] * 2 + [None] * 2 + [["t0"]] * 2  # type: ignore[attr-defined]
    assert "learnt on t0" in notes[1]
    assert "all tasks" in notes[2]


def test_the_loss_of_a_node_is_that_of_its_tasks_while_it_learns() -> None:
    problem = replace(similar_pool(), owners=("t1", "t1", "t0", "t0"))
    step = next(s for s in supermerge_hierarchical(problem, Settings(**QUICK)) if (s.t, s.inner) == (1, 1))
    own = float(problem.objective.losses(problem.vectors.base, tasks=("t1",)).mean())
    assert step.loss == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize(("n", "arity", "nodes"), [(1, 2, 1), (2, 2, 1), (5, 2, 4), (5, 3, 3), (9, 3, 4), (5, 8, 1)])
def test_as_many_nodes_as_the_tree_has(n: int, arity: int, nodes: int) -> None:
    found = completed(toy_problem(n=n, tasks=1), arity=arity, updates=2, grouping="order")
    assert len(found) == nodes + 1
    assert [step.status for step in found] == ["running"] * nodes + ["max_steps"]
    assert found[-1].coefficients is not None
    assert (found[-1].coefficients != 0).all()


@pytest.mark.parametrize("n", [6, 18])
def test_no_more_than_arity_models_are_held_whatever_the_pool(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed checkpoints: the only matrices of whole models have ``arity`` rows, and there is one."""
    held: set[int] = set()
    made = ResidentTaskVectors.__init__

    def watch(self: ResidentTaskVectors, layout: Any, names: Any, base: Tensor, matrix: Tensor, **rest: Any) -> None:
        if rest.get("rows") is None:
            held.add(matrix.untyped_storage().data_ptr())
            assert matrix.untyped_storage().nbytes() == 3 * layout.size * 4
        made(self, layout, names, base, matrix, **rest)

    streamed = Streamed(toy_vectors(n=n))
    problem = Problem(streamed, toy_problem(n=3).objective)  # type: ignore[arg-type]
    monkeypatch.setattr(ResidentTaskVectors, "__init__", watch)
    for _ in supermerge_hierarchical(problem, Settings(**{**QUICK, "updates": 2}, arity=3)):
        pass
    assert len(held) == 1
    # Every level reads each checkpoint at most once, beside the gram matrix and the finished nodes.
    levels = 2 if n == 6 else 3
    assert streamed.reads <= n * (levels + 1 + levels)


class Streamed:
    """Task vectors that are not resident: what a node works on must be built."""

    def __init__(self, inner: ResidentTaskVectors) -> None:
        self._inner, self.layout, self.names, self.base = inner, inner.layout, inner.names, inner.base
        self.n = inner.n
        self.reads = 0

    def gram(self, groups: Any) -> Tensor:
        self.reads += self.n
        return self._inner.gram(groups)

    def combine(self, coefficients: Tensor, groups: Any, out: Tensor | None = None) -> Tensor:
        self.reads += int(coefficients.ne(0).any(dim=0).sum())
        return self._inner.combine(coefficients, groups, out)


def test_the_root_reports_the_loss_of_all_tasks() -> None:
    problem = replace(similar_pool(), owners=("t1", "t1", "t0", "t0"))
    last = completed(problem)[-1]
    assert last.loss == pytest.approx(float(problem.objective.losses(theta(problem, last)).mean()), rel=1e-5)
    assert module.Settings().arity == 2
