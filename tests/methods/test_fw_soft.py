"""FW-soft on a convex problem whose answer is known."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fwviz.methods.adamerging import Settings as AdaMerging
from fwviz.methods.adamerging import adamerging
from fwviz.methods.fw_hard import Settings as HardSettings
from fwviz.methods.fw_hard import fw_hard
from fwviz.methods.fw_soft import Settings, fw_soft
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import Problem, Step
from tests.toy import beside_a_cliff, toy_problem, toy_vectors

INSIDE = torch.tensor([0.3, 0.2, 0.1, 0.0, 0.0])
FULL: dict[str, Any] = {"batch_size": 0, "inner_updates": 25}


def iterates(problem: Problem, **settings: Any) -> list[Step]:
    return [step for step in fw_soft(problem, Settings(**settings)) if step.inner == 0]


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
@pytest.mark.parametrize("coefficient_granularity", ["model", "layer", "tensor"])
def test_reaches_the_known_optimum_at_every_granularity(granularity: str, coefficient_granularity: str) -> None:
    steps = iterates(
        toy_problem(mixture=INSIDE),
        granularity=granularity,
        coefficient_granularity=coefficient_granularity,
        max_steps=12,
        epsilon=1e-3,
        **FULL,
    )
    last = steps[-1]
    finer = max((granularity, coefficient_granularity), key=["model", "layer", "tensor"].index)
    assert last.granularity == finer
    assert last.coefficients is not None
    assert last.loss is not None
    assert last.loss < 0.01 * steps[0].loss  # type: ignore[operator]
    assert len(last.vertices) == {"model": 1, "layer": 4, "tensor": 6}[granularity]


@pytest.mark.parametrize("settings", [FULL, {"batch_size": 4, "learning_rate": 1.0}])
def test_an_iterate_is_never_worse_and_its_gap_certifies_it(settings: dict[str, Any]) -> None:
    """Even with a learning rate that throws every update far out."""
    problem = toy_problem(noise=1.0)
    steps = iterates(problem, max_steps=6, epsilon=0.0, **settings)
    losses: list[float] = [step.loss for step in steps]  # type: ignore[misc]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    best = min(step.loss for step in iterates(problem, max_steps=12, epsilon=0.0, **FULL))  # type: ignore[type-var]
    for step in steps:
        assert step.gap >= step.loss - best - 1e-5  # type: ignore[operator]
        assert step.in_hull is True


def test_each_task_picks_its_own_and_none_twice() -> None:
    problem = toy_problem(n=5, tasks=3)
    _, step = iterates(problem, max_steps=1, **FULL)
    # Task k is solved near checkpoint k, so from the base it picks just that.
    assert step.vertices == (("c0", "c1", "c2"),)
    assert step.task_scores.keys() == {"t0", "t1", "t2"}
    for k, scores in enumerate(step.task_scores.values()):
        assert int(scores.sum(dim=0).argmin()) == k
    _, step = iterates(problem, max_steps=1, top_k=2, **FULL)
    assert len(set(step.vertices[0])) == 6
    assert set(step.vertices[0]) == {*problem.vectors.names, "base"}
    _, step = iterates(problem, max_steps=1, task_wise=False, top_k=2, **FULL)
    joint = step.scores.sum(dim=0)  # type: ignore[union-attr]
    assert step.vertices[0] == tuple(problem.vectors.names[i] for i in joint.argsort()[:2])


def test_more_tasks_than_checkpoints() -> None:
    problem = toy_problem(n=2, tasks=2)
    _, step = iterates(problem, max_steps=1, top_k=5, **FULL)
    assert sorted(step.vertices[0]) == ["base", "c0", "c1"]


def test_unoptimised_steps_are_the_formula() -> None:
    """θ + 0.3·step·Σ(s_j − θ) with step 1, then 0.1·2/3."""
    problem = toy_problem()
    _, first, second = iterates(problem, inner="none", max_steps=2, epsilon=0.0, coefficient_granularity="model")

    def vertex(name: str) -> torch.Tensor:
        return torch.tensor([1.0 if name == other else 0.0 for other in problem.vectors.names])

    start = sum((0.3 * vertex(name) for name in first.vertices[0]), torch.zeros(5))
    torch.testing.assert_close(first.coefficients[0], start)  # type: ignore[index]
    share = 0.3 * 0.1 * 2 / 3
    end = start + sum((share * (vertex(name) - start) for name in second.vertices[0]), torch.zeros(5))
    torch.testing.assert_close(second.coefficients[0], end)  # type: ignore[index]


def test_updates_are_shown() -> None:
    problem = toy_problem(noise=1.0)
    steps = list(fw_soft(problem, Settings(max_steps=2, inner_updates=7, batch_size=4, epsilon=0.0)))
    assert [(step.t, step.inner) for step in steps] == [
        (0, 1),
        (0, 0),
        *((1, i) for i in range(1, 8)),
        (1, 0),
        *((2, i) for i in range(1, 8)),
        (2, 0),
    ]
    assert all(step.coefficients is not None for step in steps)
    assert all(step.loss is not None for step in steps[1:])
    torch.testing.assert_close(steps[8].coefficients, steps[9].coefficients)


def test_copies_of_one_checkpoint_stay_on_its_segment() -> None:
    one = toy_vectors(n=2)
    vectors = ResidentTaskVectors(one.layout, ("a", "b", "c"), one.base, one.matrix[[0, 0, 0]].clone())
    problem = Problem(vectors, toy_problem(n=2, tasks=2, mixture=torch.tensor([0.6, 0.0])).objective)
    last = iterates(problem, max_steps=5, coefficient_granularity="model", **FULL)[-1]
    assert last.coefficients is not None
    assert float(last.coefficients.sum()) == pytest.approx(0.6, abs=0.01)


def test_irrelevant_checkpoints_do_no_harm() -> None:
    few = iterates(toy_problem(n=3, tasks=3), max_steps=6, **FULL)[-1]
    wide = toy_vectors(n=12, seed=5)
    narrow = toy_problem(n=3, tasks=3)
    matrix = torch.cat([narrow.vectors.matrix, wide.matrix])  # type: ignore[attr-defined]
    names = (*narrow.vectors.names, *(f"x{i}" for i in range(12)))
    vectors = ResidentTaskVectors(narrow.vectors.layout, names, narrow.vectors.base, matrix)
    many = iterates(Problem(vectors, narrow.objective), max_steps=6, **FULL)[-1]
    assert many.loss is not None
    assert few.loss is not None
    assert many.loss < few.loss + 0.01


def test_hull_scale_reaches_beyond_the_hull() -> None:
    problem = toy_problem(mixture=torch.tensor([0.9, 0.6, 0.0, 0.0, 0.0]))
    near = iterates(problem, max_steps=10, **FULL)[-1]
    far = iterates(problem, max_steps=10, hull_scale=2.0, **FULL)[-1]
    assert near.in_hull is True
    assert far.in_hull is False
    assert far.loss < 0.05 * near.loss  # type: ignore[operator]
    assert far.coefficients.sum(dim=1).max() <= 2.0 + 1e-5  # type: ignore[union-attr]
    assert near.coefficients.sum(dim=1).max() <= 1.0 + 1e-5  # type: ignore[union-attr]


def test_starts_where_it_is_told() -> None:
    for init, value in (("base", 0.0), ("average", 0.2), ("task_arithmetic", 0.25)):
        run = fw_soft(toy_problem(), Settings(init=init, init_scale=0.25))
        shown, first = next(run), next(run)
        for step in (shown, first):
            torch.testing.assert_close(step.coefficients, torch.full((4, 5), value))
            assert step.t == 0
        assert shown.loss is None
        assert first.loss is not None


@pytest.mark.parametrize("method", [fw_soft, fw_hard])
def test_starts_from_adamerging(method: Any) -> None:
    """The updates of AdaMerging come first, at t = 0; the path starts where they end, and may mix that point in."""
    problem = toy_problem()
    settings: Any = {"init": "adamerging", "init_updates": 40, "max_steps": 1}
    steps = list(method(problem, HardSettings(**settings) if method is fw_hard else Settings(**settings)))
    first = [step for step in steps if step.t == 0]
    granularity = first[-1].granularity
    adapted = list(adamerging(problem, AdaMerging(updates=40, granularity=granularity)))
    assert [step.inner for step in first] == [*range(1, len(adapted) + 2), 0]
    for step, own in zip(first, adapted, strict=False):
        assert torch.equal(step.coefficients, own.coefficients)
        assert step.loss is None
    assert torch.equal(first[-1].coefficients, adapted[-1].coefficients)
    theta = problem.vectors.combine(first[-1].coefficients, problem.groups(granularity))
    assert first[-1].loss == pytest.approx(float(problem.objective.losses(theta).mean()), rel=1e-5)
    assert first[-1].in_hull is True
    assert steps[-1].loss < first[-1].loss


def test_notes_name_where_it_went() -> None:
    _, step = iterates(toy_problem(), max_steps=1, **FULL)
    assert "towards c0" in step.note
    assert "calibration loss" in step.note


@pytest.mark.parametrize("beyond", [torch.inf, torch.nan])
def test_a_mixture_that_is_not_finite_is_pulled_back(beyond: float) -> None:
    """By batches the updates stay before the edge, and the mean of the last ones may not: here there is one update."""
    problem = beside_a_cliff(toy_problem(), 1.0, beyond)
    settings = {"inner_updates": 1, "learning_rate": 1.0, "batch_size": 4, "max_steps": 1, "epsilon": 0.0}
    start, last = iterates(problem, **settings)
    assert last.loss is not None
    assert last.loss < start.loss  # type: ignore[operator]
    assert last.note.endswith("; pulled back, the mixture found has no finite calibration loss")
    _, last = iterates(beside_a_cliff(toy_problem(), 1e-3, beyond), **settings)
    assert last.note.startswith("stayed: the mixture found for c")
    assert last.note.endswith("has no finite calibration loss")
    # All samples: each trial of the projected gradient is told.
    steps = list(fw_soft(problem, Settings(max_steps=2, epsilon=0.0, **FULL)))
    assert any("rejected a trial whose loss is not finite" in step.note for step in steps)
    assert steps[-1].loss < start.loss  # type: ignore[operator]


@pytest.mark.parametrize("extra", ["base_initial", "initial", "none"])
@pytest.mark.parametrize("init", ["base", "average", "task_arithmetic"])
@pytest.mark.parametrize("inner", ["simplex", "official"])
def test_an_iterate_in_the_hull_is_a_mixture_of_its_vertices(extra: str, init: str, inner: str) -> None:
    """By non-negative least squares, where the released updates may leave the set the gap is measured over."""
    nnls = pytest.importorskip("scipy.optimize").nnls
    more = {"official_rate": 0.05, "official_updates": 60} if inner == "official" else {}
    facts: dict[str, Any] = {"init": init, "inner": inner, "extra_vertices": extra, "coefficient_granularity": "model"}
    steps = iterates(toy_problem(mixture=INSIDE), max_steps=4, epsilon=0.0, batch_size=0, **facts, **more)
    assert steps[0].coefficients is not None
    vertices = list(torch.eye(5)[:, None])
    vertices += [steps[0].coefficients] if extra != "none" else []
    vertices += [torch.zeros(1, 5)] if extra == "base_initial" else []
    columns = torch.cat([*vertices]).double().T
    system = torch.cat([columns, torch.ones(1, len(vertices), dtype=torch.float64)]).numpy()
    for step in steps:
        assert step.coefficients is not None
        _, distance = nnls(system, [*step.coefficients[0].tolist(), 1.0])
        assert step.in_hull is (distance < 2e-6), (step.t, distance)
