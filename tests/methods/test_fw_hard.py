"""FW-hard on a convex problem whose answer is known."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz import solver
from fwviz.methods._frank_wolfe import Hull, _cosines
from fwviz.methods.fw_hard import Settings, fw_hard
from fwviz.registry import parse_settings
from fwviz.space import simplex
from fwviz.space.sparsify import trim
from fwviz.types import FwvizError, Problem, Step
from tests.toy import beside_a_cliff, toy_problem

INSIDE = torch.tensor([0.3, 0.2, 0.1, 0.0, 0.0])
STRETCHED = torch.tensor([0.9, 0.6, 0.0, 0.0, 0.0])


def iterates(problem: Problem, **settings: Any) -> list[Step]:
    return [step for step in fw_hard(problem, Settings(**settings)) if step.inner == 0]


def floor(problem: Problem, granularity: str, total: float = 1.0) -> float:
    """min ℓ over the hull, by the projected gradient on all coefficients."""
    vectors, groups = problem.vectors, problem.groups(granularity)  # type: ignore[arg-type]
    directions = torch.eye(vectors.n, dtype=torch.float64)[:, None, :].expand(-1, len(groups), -1)
    offset = torch.zeros(len(groups), vectors.n, dtype=torch.float64)
    family = solver.Affine(offset, directions, torch.arange(len(groups)), len(groups))
    theta = torch.empty_like(vectors.base)
    landscape = solver.Landscape(family, vectors, groups, problem.objective, "cross_entropy", theta)

    def project(weights: Tensor) -> Tensor:
        return simplex.project_capped_simplex(weights, total)

    *_, last = solver.projected_gradient(landscape, offset, project, updates=100)
    return landscape.value(last.weights)


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
@pytest.mark.parametrize("init", ["base", "average"])
def test_gap_bounds_the_distance_to_the_optimum(granularity: str, init: str) -> None:
    """The certificate: ℓ(θ_t) − min ℓ ≤ g_t at every iterate, here with the optimum on the boundary."""
    problem = toy_problem(reach=1.5)
    best = floor(problem, granularity)
    steps = iterates(problem, granularity=granularity, init=init, max_steps=8, epsilon=0.0)
    assert len(steps) == 9
    for step in steps:
        assert step.loss is not None
        assert step.gap is not None
        assert step.gap >= step.loss - best - 1e-5
        assert step.loss >= best - 1e-5
    # And it is a useful certificate: it shrinks as the loss approaches the optimum.
    first, last = steps[0], steps[-1]
    assert last.loss - best < 0.25 * (first.loss - best)  # type: ignore[operator]
    assert last.gap < 0.5 * first.gap  # type: ignore[operator]


@pytest.mark.parametrize("step_rule", ["line_search", "short_step"])
def test_descent_rules_reach_the_known_optimum(step_rule: str) -> None:
    problem = toy_problem(mixture=INSIDE)
    steps = iterates(problem, granularity="model", init="base", step_rule=step_rule, max_steps=40, epsilon=1e-3)
    losses = [step.loss for step in steps]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))  # type: ignore[operator]
    assert steps[-1].coefficients is not None
    torch.testing.assert_close(steps[-1].coefficients[0], INSIDE, rtol=0, atol=0.01)
    assert losses[-1] < 1e-3  # type: ignore[operator]


def test_stops_by_gap_or_by_count() -> None:
    problem = toy_problem(mixture=INSIDE)
    steps = iterates(problem, granularity="model", init="base", max_steps=40, epsilon=0.3)
    assert steps[-1].status == "converged"
    assert steps[-1].gap is not None
    assert steps[-1].gap <= 0.3
    assert all(step.gap > 0.3 and step.status == "running" for step in steps[:-1])  # type: ignore[operator]
    steps = iterates(problem, granularity="model", init="base", max_steps=3, epsilon=0.0)
    assert [step.status for step in steps] == ["running", "running", "running", "max_steps"]
    assert [step.t for step in steps] == [0, 1, 2, 3]


def test_scores_are_the_slopes_towards_checkpoints() -> None:
    """Against autograd along the segment: d/dγ ℓ(θ_t + γ·(s_i − θ_t)_g) at γ = 0, per group and per task."""
    problem = toy_problem()
    first, second = iterates(problem, granularity="layer", init="average", max_steps=1, epsilon=0.0)
    vectors, groups = problem.vectors, problem.groups("layer")
    theta = vectors.combine(first.coefficients, groups)  # type: ignore[arg-type]
    expected = torch.zeros(len(groups), vectors.n)
    step = 1e-2
    for i in range(vectors.n):
        direction = vectors.base + vectors.vector(i) - theta
        for g, (a, b) in enumerate(groups.ranges()):
            part = torch.zeros_like(theta)
            part[a:b] = direction[a:b]
            ahead, behind = (problem.objective.losses(theta + sign * step * part).mean() for sign in (1, -1))
            expected[g, i] = (ahead - behind) / (2 * step)
    assert second.scores is not None
    torch.testing.assert_close(second.scores, expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(second.scores, torch.stack(list(second.task_scores.values())).mean(0))
    for g, names in enumerate(second.vertices):
        if names[0] in vectors.names:
            assert vectors.names[int(second.scores[g].argmin())] == names[0]


def test_without_task_scores_the_path_is_the_same() -> None:
    with_scores = iterates(toy_problem(), max_steps=3, epsilon=0.0)
    without = iterates(toy_problem(), max_steps=3, epsilon=0.0, task_scores=False)
    assert without[-1].task_scores == {}
    torch.testing.assert_close(with_scores[-1].coefficients, without[-1].coefficients)


def test_trials_of_the_line_search_are_shown_as_they_are() -> None:
    problem = toy_problem()
    steps = list(fw_hard(problem, Settings(max_steps=2, init="base")))
    trials = [step for step in steps if step.inner > 0 and step.t > 0]
    assert trials
    for step in trials:
        theta = problem.vectors.combine(step.coefficients, problem.groups("layer"))  # type: ignore[arg-type]
        assert float(problem.objective.losses(theta).mean()) == pytest.approx(step.loss, rel=1e-5)


@pytest.mark.parametrize("beyond", [torch.inf, torch.nan])
@pytest.mark.parametrize(
    "settings",
    [{}, {"step_rule": "short_step", "trials": 20}, {"merge_fn": "ties", "density": 0.9}],
    ids=["line search", "short step", "trimmed"],
)
def test_a_trial_that_is_not_finite_is_rejected(settings: dict[str, Any], beyond: float) -> None:
    problem = beside_a_cliff(toy_problem(), 1.5, beyond)  # every checkpoint lies further out
    steps = list(fw_hard(problem, Settings(max_steps=3, init="base", epsilon=0.0, **settings)))
    rejected = [step for step in steps if step.rejected]
    assert rejected
    for step in rejected:
        assert step.inner > 0
        assert step.loss is None
        assert "rejected, the calibration loss there is not finite" in step.note
    losses: list[float] = [step.loss for step in steps if step.inner == 0]  # type: ignore[misc]
    assert losses[1] < losses[0]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))


def test_where_no_trial_is_finite_the_path_ends_and_says_so() -> None:
    *_, last = fw_hard(beside_a_cliff(toy_problem(), 1e-6, torch.nan), Settings(init="base"))
    assert (last.inner, last.step_size, last.status) == (0, 0.0, "converged")
    assert last.coefficients is not None
    assert not last.coefficients.any()
    assert last.loss is not None
    assert last.note.startswith("no finite calibration loss on the way to c")


def test_open_loop_takes_the_textbook_steps() -> None:
    """γ₀ = 1 lands on a vertex, γ₁ = 2/3 leaves a third of it."""
    steps = iterates(toy_problem(), granularity="model", init="base", step_rule="open_loop", max_steps=2, epsilon=0.0)
    names = toy_problem().vectors.names
    first = torch.tensor([1.0 if name == steps[1].vertices[0][0] else 0.0 for name in names])
    second = torch.tensor([1.0 if name == steps[2].vertices[0][0] else 0.0 for name in names])
    torch.testing.assert_close(steps[1].coefficients[0], first)  # type: ignore[index]
    torch.testing.assert_close(steps[2].coefficients[0], first / 3 + 2 * second / 3)  # type: ignore[index]
    assert [step.step_size for step in steps[1:]] == [1.0, pytest.approx(2 / 3)]


@pytest.mark.parametrize("initial", [0.0, 0.2])
def test_cosines_are_those_of_the_stretched_vertices(initial: float) -> None:
    vectors = toy_problem().vectors
    groups = vectors.layout.groups("layer")
    start = torch.full((len(groups), vectors.n), initial, dtype=torch.float64)
    hull = Hull.build(vectors, groups, start, 2.0, "base_initial")
    gradient = torch.randn(vectors.layout.size, generator=torch.Generator().manual_seed(4))
    found = _cosines(hull, gradient)
    for v in range(len(hull.names)):
        theta = vectors.combine(hull.vertex(torch.full((len(groups),), v)).float(), groups)
        pairs = [
            (vectors.layout.view(gradient, n).flatten(), vectors.layout.view(theta, n).flatten())
            for n in vectors.layout.names
        ]
        each = torch.tensor([float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs], dtype=torch.float64)
        expected = simplex.sum_groups(each, simplex.parents(vectors.layout.groups("tensor"), groups), len(groups))
        torch.testing.assert_close(found[:, v], expected, rtol=1e-5, atol=1e-6)


def test_hull_scale_stretches_the_checkpoints() -> None:
    problem = toy_problem(mixture=STRETCHED)
    near = iterates(problem, granularity="model", init="base", max_steps=20)[-1]
    far = iterates(problem, granularity="model", init="base", max_steps=40, hull_scale=2.0)[-1]
    assert near.coefficients is not None
    assert far.coefficients is not None
    assert near.coefficients.sum() <= 1.0 + 1e-6
    assert near.in_hull is True
    torch.testing.assert_close(far.coefficients[0], STRETCHED, rtol=0, atol=0.03)
    assert far.in_hull is False
    assert far.loss is not None
    assert near.loss is not None
    assert far.loss < 0.05 * near.loss
    # One whole open-loop step lands on the stretched vertex itself.
    step = iterates(problem, granularity="model", init="base", step_rule="open_loop", max_steps=1, hull_scale=2.0)[-1]
    assert sorted(step.coefficients[0].tolist()) == [0.0, 0.0, 0.0, 0.0, 2.0]  # type: ignore[index]


def test_the_initial_solution_is_a_vertex_and_in_the_hull() -> None:
    """Task arithmetic with 5 × 0.3 lies outside the checkpoints' hull; the path can go back towards it."""
    steps = iterates(toy_problem(mixture=torch.full((5,), 0.29)), granularity="model", init="task_arithmetic")
    assert steps[0].coefficients is not None
    assert float(steps[0].coefficients.sum()) == pytest.approx(1.5)
    assert all(step.in_hull for step in steps)
    assert all(step.gap >= 0 for step in steps)  # type: ignore[operator]


def test_ties_moves_by_the_trimmed_difference() -> None:
    """By hand: from the base, an open-loop first step (γ = 1) adds the largest fifth of the vertex's task vector."""
    problem = toy_problem()
    facts: dict[str, Any] = {"granularity": "model", "init": "base", "step_rule": "open_loop", "epsilon": 0.0}
    _, step = iterates(problem, merge_fn="ties", max_steps=1, **facts)
    chosen = problem.vectors.names.index(step.vertices[0][0])
    tau = problem.vectors.vector(chosen)
    keep = torch.argsort(tau.abs(), descending=True)[: int(0.2 * tau.numel()) + 1]
    expected = torch.zeros_like(tau)
    expected[keep] = tau[keep]
    assert step.delta is not None
    torch.testing.assert_close(step.delta, expected, atol=1e-6, rtol=0)
    assert step.coefficients is None
    assert step.in_hull is False
    # The second step trims the difference to θ_t, not to the base.
    steps = fw_hard(problem, Settings(merge_fn="ties", max_steps=2, **facts))
    deltas = [(s.vertices, s.delta.clone()) for s in steps if s.delta is not None and s.inner == 0]
    (_, before), (vertices, after) = deltas
    target = problem.vectors.vector(problem.vectors.names.index(vertices[0][0]))
    torch.testing.assert_close(after, before + 2 / 3 * trim(target - before, 0.2), atol=1e-5, rtol=0)


def test_ties_keeping_everything_is_convex() -> None:
    problem = toy_problem()
    facts: dict[str, Any] = {"init": "base", "max_steps": 4, "epsilon": 0.0, "density": 1.0}
    whole = [s.loss for s in iterates(problem, merge_fn="convex", **facts)]
    ties = [s.loss for s in iterates(problem, merge_fn="ties", **facts)]
    assert ties == pytest.approx(whole, rel=0.02)  # the line search knows no slope there, so trials differ a little


def test_groups_that_point_uphill_stay() -> None:
    """At the optimum of one layer no vertex improves it: with only checkpoints as vertices its best score is ≥ 0."""
    problem = toy_problem(mixture=torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))
    objective: Any = problem.objective
    a, b = list(problem.groups("layer").ranges())[2]
    objective.centres[:, a:b] = problem.vectors.base[a:b] - 3.0 * problem.vectors.matrix[:, a:b].sum(0)  # type: ignore[attr-defined]
    facts: dict[str, Any] = {"init": "base", "max_steps": 1, "extra_vertices": "none", "epsilon": 0.0}
    _, stay = iterates(problem, **facts)
    best = stay.scores.min(dim=1).values  # type: ignore[union-attr]
    assert [names == () for names in stay.vertices] == [bool(value >= 0) for value in best]
    uphill = [g for g, names in enumerate(stay.vertices) if not names]
    assert uphill
    assert not stay.coefficients[uphill].any()  # type: ignore[index]
    _, go = iterates(problem, skip_uphill=False, step_rule="official", **facts)
    assert go.coefficients[uphill].any()  # type: ignore[index]


@pytest.mark.parametrize("skip_uphill", [True, False])
@pytest.mark.parametrize("merge_fn", ["convex", "ties"])
def test_a_step_that_cannot_descend_ends_the_run(skip_uphill: bool, merge_fn: str) -> None:
    """At the unconstrained optimum every way leads up: stay there and say so."""
    problem = toy_problem(mixture=torch.zeros(5))
    _, first, *trials, last = fw_hard(
        problem, Settings(init="base", extra_vertices="none", skip_uphill=skip_uphill, merge_fn=merge_fn)
    )
    assert (len(trials) == 0) == skip_uphill
    assert (last.t, last.status, last.step_size) == (1, "converged", 0.0)
    assert last.loss == first.loss
    assert "no lower" in last.note


def test_settings_are_checked_before_the_run() -> None:
    with pytest.raises(FwvizError, match="short_step"):
        parse_settings(Settings, {"merge_fn": "ties", "step_rule": "short_step"})
    with pytest.raises(FwvizError, match="hull_scale"):
        parse_settings(Settings, {"hull_scale": 0.5})


def test_the_loss_setting_reaches_the_objective() -> None:
    problem = toy_problem()
    seen: set[str] = set()

    class Watch:
        tasks = problem.objective.tasks

        def losses(self, theta: Tensor, **facts: Any) -> Tensor:
            seen.add(facts["loss"])
            return problem.objective.losses(theta, **facts)

        def gradient(self, theta: Tensor, **facts: Any) -> tuple[Tensor, Tensor]:
            seen.add(facts["loss"])
            return problem.objective.gradient(theta, **facts)

    iterates(dataclasses.replace(problem, objective=Watch()), loss="entropy", max_steps=2)
    assert seen == {"entropy"}
