"""The coefficient solver: the identity S against finite differences, and both rules against known answers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz import solver
from fwviz.space import simplex
from fwviz.types import FwvizError, Problem
from tests.equality import largest_difference
from tests.toy import beside_a_cliff, toy_problem


def layer_landscape(problem: Problem, m: int = 3) -> solver.Landscape:
    """Weights per layer on tensor-wise directions from a random point: the general case."""
    vectors, groups = problem.vectors, problem.groups("tensor")
    generator = torch.Generator().manual_seed(7)
    offset = 0.2 * torch.rand(len(groups), vectors.n, generator=generator, dtype=torch.float64)
    directions = torch.randn(m, len(groups), vectors.n, generator=generator, dtype=torch.float64)
    layers = problem.groups("layer")
    family = solver.Affine(offset, directions, simplex.parents(groups, layers), len(layers))
    theta = torch.empty_like(vectors.base)
    return solver.Landscape(family, vectors, groups, problem.objective, "cross_entropy", theta)


def identity_landscape(problem: Problem) -> solver.Landscape:
    """Weights that are the layer-wise coefficients themselves."""
    vectors, groups = problem.vectors, problem.groups("layer")
    directions = torch.eye(vectors.n, dtype=torch.float64)[:, None, :].expand(-1, len(groups), -1)
    offset = torch.zeros(len(groups), vectors.n, dtype=torch.float64)
    family = solver.Affine(offset, directions, torch.arange(len(groups)), len(groups))
    theta = torch.empty_like(vectors.base)
    return solver.Landscape(family, vectors, groups, problem.objective, "cross_entropy", theta)


def test_gradient_matches_finite_differences() -> None:
    landscape = layer_landscape(toy_problem())
    weights = torch.full((4, 3), 0.1, dtype=torch.float64)
    _, gradient = landscape.slope(weights)
    numeric = torch.zeros_like(weights)
    for index in torch.cartesian_prod(torch.arange(4), torch.arange(3)).tolist():
        step = torch.zeros_like(weights)
        step[tuple(index)] = 0.05
        # Central differences are exact on a quadratic, up to float32.
        numeric[tuple(index)] = (landscape.value(weights + step) - landscape.value(weights - step)) / 0.1
    torch.testing.assert_close(gradient, numeric, rtol=2e-3, atol=2e-3)


def test_tanh_gradient_matches_finite_differences() -> None:
    problem = toy_problem()
    groups = problem.groups("tensor")
    family = solver.Tanh.free(len(groups), 5)
    theta = torch.empty_like(problem.vectors.base)
    landscape = solver.Landscape(family, problem.vectors, groups, problem.objective, "cross_entropy", theta)
    # Far enough from zero that 1 − tanh² matters, on both sides.
    weights = torch.linspace(-1.2, 1.2, 30, dtype=torch.float64).view(6, 5)
    _, gradient = landscape.slope(weights)
    for index in torch.cartesian_prod(torch.arange(6), torch.arange(5)).tolist():
        step = torch.zeros_like(weights)
        step[tuple(index)] = 0.02
        numeric = (landscape.value(weights + step) - landscape.value(weights - step)) / 0.04
        assert float(gradient[tuple(index)]) == pytest.approx(numeric, rel=0.02, abs=2e-3)


def test_tanh_matches_autograd_through_the_merge() -> None:
    """The same merge written with autograd over the task vectors, float64 against our float32 inner products."""
    problem = toy_problem()
    vectors, groups = problem.vectors, problem.groups("layer")
    theta = torch.empty_like(vectors.base)
    landscape = solver.Landscape(
        solver.Tanh.free(len(groups), 5), vectors, groups, problem.objective, "cross_entropy", theta, ("t1", "t2")
    )
    weights = torch.linspace(-0.8, 0.9, 20, dtype=torch.float64).view(4, 5)
    loss, gradient = landscape.slope(weights)
    leaf = weights.clone().requires_grad_()
    rows = leaf.tanh().repeat_interleave(torch.tensor(groups.bounds).diff(), dim=0)
    merged = vectors.base.double() + (rows.T * torch.stack([vectors.vector(i) for i in range(5)]).double()).sum(dim=0)
    quadratic: Any = problem.objective
    value = torch.stack(
        [0.5 * (quadratic.weights[k] * (merged - quadratic.centres[k]).square()).sum() for k in (1, 2)]
    ).mean()
    value.backward()
    assert loss == pytest.approx(float(value.detach()), rel=1e-6)
    assert leaf.grad is not None
    largest_difference("supermerge's gradient", "torch autograd, float64", gradient, leaf.grad)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-5, atol=1e-5)


def test_rounding_noise_moves_no_weight() -> None:
    """A group no loss depends on gets no gradient, where Adam would turn rounding errors into full updates."""
    problem = toy_problem()
    vectors, groups = problem.vectors, problem.groups("tensor")
    objective: Any = problem.objective
    a, b = groups.bounds[2:4]
    objective.weights[:, a:b] = 1e-12
    theta = torch.empty_like(vectors.base)
    landscape = solver.Landscape(solver.Tanh.free(6, 5), vectors, groups, objective, "cross_entropy", theta)
    rule = solver.adam(
        landscape,
        torch.zeros(6, 5, dtype=torch.float64),
        lambda weights: weights,
        updates=3,
        rate=0.1,
        batch_size=None,
        generator=torch.Generator(),
        decay=False,
    )
    last = run(rule)[-1].weights
    assert (last[2] == 0).all()
    assert (last[[0, 1, 3, 4, 5]] != 0).all()


def test_only_columns_in_use_are_read() -> None:
    problem = toy_problem(n=5)
    vectors, groups = problem.vectors, problem.groups("model")
    directions = torch.zeros(1, 1, 5, dtype=torch.float64)
    directions[0, 0, 3] = 1.0
    offset = torch.zeros(1, 5, dtype=torch.float64)
    offset[0, 1] = 0.5
    family = solver.Affine(offset, directions, torch.zeros(1, dtype=torch.long), 1)
    assert family.columns() == [1, 3]
    theta = torch.empty_like(vectors.base)
    landscape = solver.Landscape(family, vectors, groups, problem.objective, "cross_entropy", theta)
    before = vectors.bytes_read
    weights = torch.full((1, 1), 0.25, dtype=torch.float64)
    point = landscape.point(weights)
    assert vectors.bytes_read - before == 2 * vectors.layout.size * 4
    torch.testing.assert_close(point, vectors.base + 0.5 * vectors.vector(1) + 0.25 * vectors.vector(3))


def run(progress: object) -> list[solver.Progress]:
    return list(progress)  # type: ignore[call-overload,no-any-return]


def test_projected_gradient_reaches_the_constrained_optimum_and_never_rises() -> None:
    landscape = identity_landscape(toy_problem(reach=1.5))  # the centres lie outside: Σλ ≤ 1 is active
    start = torch.zeros(4, 5, dtype=torch.float64)
    steps = run(solver.projected_gradient(landscape, start, simplex.project_capped_simplex, updates=200))
    losses = [landscape.value(step.weights) for step in steps]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(losses))
    weights = steps[-1].weights
    assert (weights >= 0).all()
    assert (weights.sum(dim=1) <= 1 + 1e-9).all()
    assert (weights.sum(dim=1) > 0.999).any()
    # Optimal if and only if a projected gradient step does not move it.
    _, gradient = landscape.slope(weights)
    moved = simplex.project_capped_simplex(weights - 0.01 * gradient)
    assert (moved - weights).abs().max() < 1e-4


@pytest.mark.parametrize("beyond", [torch.inf, -torch.inf, torch.nan])
def test_projected_gradient_turns_back_from_what_is_not_finite(beyond: float) -> None:
    plain = toy_problem(reach=1.5)
    start = torch.zeros(4, 5, dtype=torch.float64)

    def descend(problem: Problem) -> tuple[solver.Landscape, list[solver.Progress]]:
        landscape = identity_landscape(problem)
        rule = solver.projected_gradient(landscape, start, simplex.project_capped_simplex, updates=60, reach=1.0)
        return landscape, run(rule)

    free = descend(plain)[0]
    reached = float((free.point(descend(plain)[1][-1].weights) - plain.vectors.base).norm())
    landscape, steps = descend(beside_a_cliff(plain, 0.5 * reached, beyond))
    assert any(step.rejected for step in steps)
    for before, step in itertools.pairwise(steps):
        assert step.weights.isfinite().all()
        assert step.loss <= before.loss
        if step.rejected:
            assert (step.weights == before.weights).all()
    moved = float((landscape.point(steps[-1].weights) - plain.vectors.base).norm())
    assert 0.25 * reached < moved <= 0.5 * reached
    # Where the start itself is not finite there is nothing to go by.
    with pytest.raises(FwvizError, match="not-a-number where it starts"):
        descend(beside_a_cliff(plain, -1.0, beyond))


def test_adam_follows_torch() -> None:
    landscape = layer_landscape(toy_problem())
    start = torch.full((4, 3), 0.3, dtype=torch.float64)
    ours = run(
        solver.adam(
            landscape,
            start,
            lambda weights: weights,
            updates=20,
            rate=0.01,
            batch_size=None,
            generator=torch.Generator(),
            decay=False,
        )
    )
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=0.01)
    for step in ours:
        _, weights.grad = landscape.slope(weights.detach())
        optimiser.step()
        torch.testing.assert_close(step.weights, weights.detach(), rtol=0, atol=1e-9)
    largest_difference("adam, 20 updates", "torch.optim.Adam", step.weights, weights.detach())


@pytest.mark.parametrize("family", [solver.Affine, solver.Tanh])
def test_adam_with_weight_decay_follows_torch(family: type[solver.Affine]) -> None:
    problem = toy_problem()
    theta = torch.empty_like(problem.vectors.base)
    landscape = solver.Landscape(
        family.free(4, 5), problem.vectors, problem.groups("layer"), problem.objective, "cross_entropy", theta
    )
    start = torch.full((4, 5), 0.3, dtype=torch.float64)
    ours = solver.adam(
        landscape,
        start,
        lambda weights: weights,
        updates=20,
        rate=0.05,
        batch_size=None,
        generator=torch.Generator(),
        decay=False,
        weight_decay=0.4,
    )
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.AdamW([weights], lr=0.05, weight_decay=0.4)
    for step in run(ours):
        _, weights.grad = landscape.slope(weights.detach())
        optimiser.step()
        torch.testing.assert_close(step.weights, weights.detach(), rtol=0, atol=1e-9)
    largest_difference("supermerge's AdamW, 20 updates", "torch.optim.AdamW", step.weights, weights.detach())


def test_adam_averages_the_noise_of_batches_out() -> None:
    problem = toy_problem(mixture=torch.tensor([0.3, 0.2, 0.1, 0.0, 0.0]), noise=1.0)
    landscape = identity_landscape(problem)
    start = torch.zeros(4, 5, dtype=torch.float64)
    steps = run(
        solver.adam(
            landscape,
            start,
            simplex.project_capped_simplex,
            updates=150,
            rate=0.05,
            batch_size=4,
            generator=torch.Generator().manual_seed(1),
            decay=True,
        )
    )
    floor = landscape.value(torch.tensor([[0.3, 0.2, 0.1, 0.0, 0.0]], dtype=torch.float64).expand(4, -1))
    excess: list[float] = [landscape.value(step.weights) - floor for step in steps]
    assert excess[-1] < 0.05 * (landscape.value(start) - floor)
    assert excess[-1] < sum(excess[-20:-1]) / 19


def test_runs_repeat_with_the_same_seed() -> None:
    def weights(seed: int) -> Tensor:
        landscape = identity_landscape(toy_problem(noise=1.0))
        generator = torch.Generator().manual_seed(seed)
        start = torch.zeros(4, 5, dtype=torch.float64)
        rule = solver.adam(
            landscape,
            start,
            simplex.project_capped_simplex,
            updates=5,
            rate=0.05,
            batch_size=4,
            generator=generator,
            decay=True,
        )
        return run(rule)[-1].weights

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("rows", [1, 4])
def test_affine_rebuilds_coefficients(rows: int) -> None:
    parent = torch.zeros(4, dtype=torch.long) if rows == 1 else torch.arange(4)
    generator = torch.Generator().manual_seed(2)
    offset = torch.randn(4, 5, generator=generator)
    directions = torch.randn(2, 4, 5, generator=generator)
    weights = torch.randn(rows, 2, generator=generator)
    found = solver.Affine(offset, directions, parent, rows).coefficients(weights)
    for g in range(4):
        w = weights[0 if rows == 1 else g]
        torch.testing.assert_close(found[g], offset[g] + w[0] * directions[0, g] + w[1] * directions[1, g])
