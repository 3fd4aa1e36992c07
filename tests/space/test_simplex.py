"""Oracle, gap, projections and step rules, each against an independent reference or a defining property."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fwviz.space import simplex
from tests.toy import toy_layout


def bisect_projection(v: Tensor, total: float) -> Tensor:
    """The simplex projection found without sorting: the threshold ν with Σ max(v − ν, 0) = total, by bisection."""
    low, high = float(v.min()) - total, float(v.max())
    for _ in range(200):
        middle = 0.5 * (low + high)
        if float((v - middle).clamp(min=0).sum()) > total:
            low = middle
        else:
            high = middle
    return (v - high).clamp(min=0)


@pytest.fixture
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    scales = torch.tensor([0.01, 0.3, 1.0, 10.0]).repeat(8)[:, None]
    return scales * torch.randn(32, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("total", [0.5, 1.0, 3.0])
def test_simplex_projection_is_the_nearest_point(rows: Tensor, total: float) -> None:
    found = simplex.project_simplex(rows, total)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.full((32,), total, dtype=torch.float64))
    torch.testing.assert_close(found, torch.stack([bisect_projection(row, total) for row in rows]), atol=1e-9, rtol=0)
    torch.testing.assert_close(simplex.project_simplex(found, total), found)


@pytest.mark.parametrize("total", [0.5, 1.0, 3.0])
def test_capped_projection_is_the_nearest_point(rows: Tensor, total: float) -> None:
    found = simplex.project_capped_simplex(rows, total)
    assert (found >= 0).all()
    assert (found.sum(dim=1) <= total + 1e-12).all()
    torch.testing.assert_close(simplex.project_capped_simplex(found, total), found)
    # The nearest point of a convex set is the one from which no point of the set lies towards v.
    generator = torch.Generator().manual_seed(4)
    others = torch.distributions.Exponential(1.0).sample((500, 6)).double()
    others = total * torch.rand(500, 1, generator=generator) * others / others.sum(dim=1, keepdim=True)
    corners = torch.cat([total * torch.eye(6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64), others])
    toward = torch.einsum("rm,crm->rc", rows - found, corners[:, None] - found)
    assert (toward <= 1e-9).all()


def test_capped_projection_keeps_what_fits() -> None:
    inside = torch.tensor([[0.2, 0.3, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(simplex.project_capped_simplex(inside), inside)
    torch.testing.assert_close(
        simplex.project_capped_simplex(torch.tensor([-1.0, 0.4, 0.3])), torch.tensor([0.0, 0.4, 0.3])
    )


def test_groups_nest() -> None:
    layout = toy_layout()
    tensor, layer, model = (layout.groups(name) for name in ("tensor", "layer", "model"))
    parent = simplex.parents(tensor, layer)
    assert [layer.names[g] for g in parent] == list(layout.layers)
    assert simplex.parents(tensor, model).tolist() == [0] * 6
    assert simplex.parents(layer, layer).tolist() == [0, 1, 2, 3]
    values = torch.arange(12.0).view(6, 2)
    torch.testing.assert_close(
        simplex.sum_groups(values, parent, 4), torch.stack([values[parent == g].sum(0) for g in range(4)])
    )


def test_oracle_takes_the_lowest_and_skips_the_taken() -> None:
    scores = torch.tensor([[0.5, -2.0, -1.0, 3.0], [1.0, 1.0, -0.5, 2.0]])
    assert simplex.lmo(scores).tolist() == [1, 2]
    assert simplex.top_k(scores, 2).tolist() == [[1, 2], [2, 0]]
    taken = torch.tensor([[False, True, False, False], [False, False, True, False]])
    assert simplex.top_k(scores, 2, taken).tolist() == [[2, 0], [0, 1]]
    assert simplex.top_k(scores, 9, taken).shape == (2, 3)


def test_gap_adds_the_best_descent_of_each_group() -> None:
    slopes = torch.tensor([[0.0, -2.0, 1.0], [-0.5, 0.0, 4.0]])
    assert simplex.fw_gap(slopes) == pytest.approx(2.5)
    assert simplex.fw_gap(torch.tensor([[0.0, 3.0]])) == 0.0


def test_in_hull_knows_the_triangle_with_an_outer_vertex() -> None:
    outer = torch.tensor([[0.9, 0.6]])
    nothing = torch.zeros(1, 2)
    assert simplex.in_hull(torch.tensor([[0.5, 0.5]]), nothing)
    assert not simplex.in_hull(torch.tensor([[0.5, 0.51]]), nothing)
    assert not simplex.in_hull(torch.tensor([[-0.01, 0.5]]), nothing)
    assert simplex.in_hull(outer, outer)
    # Half way to the vertex e₀ = (1, 0), and a little beyond the edge that joins it to the outer vertex.
    edge = torch.tensor([[0.95, 0.3]])
    assert simplex.in_hull(edge, outer)
    assert not simplex.in_hull(edge + 0.01, outer)
    # Without the base a sum below one lies outside, unless the initial solution excuses it.
    half, inner = torch.tensor([[0.25, 0.25]]), torch.tensor([[0.5, 0.1]])
    assert simplex.in_hull(half)
    assert not simplex.in_hull(half, base=False)
    assert simplex.in_hull(torch.tensor([[0.4, 0.6]]), base=False)
    assert not simplex.in_hull(torch.tensor([[0.4, 0.61]]), base=False)
    assert simplex.in_hull(inner, inner, base=False)
    assert not simplex.in_hull(half, inner, base=False)
    assert simplex.in_hull(0.5 * inner + torch.tensor([[0.5, 0.0]]), inner, base=False)
    assert not simplex.in_hull(0.5 * inner + torch.tensor([[0.49, 0.0]]), inner, base=False)
    assert simplex.in_hull(half, nothing, base=False)  # the initial solution is the base
    assert not simplex.in_hull(half, outer, base=False)
    assert simplex.in_hull(half, outer)
    # One group outside spoils the whole.
    assert not simplex.in_hull(torch.tensor([[0.5, 0.5], [1.2, 0.0]]), torch.zeros(2, 2))


def search(loss: Callable[[float], float], slope: float | None, **facts: float) -> list[tuple[float, float]]:
    trials = list(simplex.line_search(loss, loss(0.0), slope, **facts))  # type: ignore[arg-type]
    assert all(0.0 < gamma <= 1.0 for gamma, _ in trials)
    assert all(value == loss(gamma) for gamma, value in trials)
    return trials


@pytest.mark.parametrize("optimum", [0.001, 0.08, 0.5, 0.93])
def test_line_search_is_exact_on_a_quadratic(optimum: float) -> None:
    trials = search(lambda gamma: 3.0 * (gamma - optimum) ** 2 + 1.0, slope=-6.0 * optimum)
    assert min(trials, key=lambda trial: trial[1])[0] == pytest.approx(optimum, rel=1e-6)
    assert len(trials) <= 4


@pytest.mark.parametrize("first", [0.05, 1.0])
@pytest.mark.parametrize(
    ("loss", "slope", "optimum"),
    [
        (lambda g: math.exp(6 * g) - 20 * g, -14.0, math.log(20 / 6) / 6),
        (lambda g: math.cosh(9 * (g - 0.7)), 9 * math.sinh(-6.3), 0.7),
        (lambda g: -g - 0.2 * g * g, -1.0, 1.0),
        (lambda g: math.log1p(math.exp(8 * (0.3 - g))) + 2 * g, -5.3, 0.3 + math.log(3) / 8),
    ],
)
def test_line_search_finds_other_minima(
    loss: Callable[[float], float], slope: float, optimum: float, first: float
) -> None:
    trials = search(loss, slope, first=first, evaluations=10)
    best, value = min(trials, key=lambda trial: trial[1])
    assert best == pytest.approx(optimum, abs=0.03)
    assert value < loss(0.0)


def test_line_search_without_a_slope_and_without_descent() -> None:
    trials = search(lambda gamma: (gamma - 0.1) ** 2, None)
    assert min(trials, key=lambda trial: trial[1])[0] == pytest.approx(0.1, rel=0.05)
    trials = search(lambda gamma: gamma, 1.0, evaluations=5)
    assert min(value for _, value in trials) > 0.0


@pytest.mark.parametrize("beyond", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("edge", [0.001, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("slope", [-2.0, None])
def test_line_search_stays_before_a_cliff(beyond: float, edge: float, slope: float | None) -> None:
    """(1 − γ)² up to the edge, where the best is; what lies beyond is asked once and never gone past."""
    trials = list(simplex.line_search(lambda g: (1 - g) ** 2 if g < edge else beyond, 1.0, slope, evaluations=12))
    assert trials[0][0] == 1.0
    limit = math.inf
    for gamma, value in trials:
        assert gamma < limit
        limit = limit if math.isfinite(value) else gamma
    best = max(gamma for gamma, value in trials if math.isfinite(value))
    assert best > 0.5 * edge
    # And where the minimum lies before the edge, it is found as ever.
    trials = list(simplex.line_search(lambda g: (g - 0.1) ** 2 if g < 0.3 else beyond, 0.01, -0.2, evaluations=12))
    finite = [trial for trial in trials if math.isfinite(trial[1])]
    assert min(finite, key=lambda trial: trial[1])[0] == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("beyond", [math.inf, -math.inf, math.nan])
def test_line_search_ends_where_nothing_is_finite(beyond: float) -> None:
    trials = list(simplex.line_search(lambda gamma: beyond, 1.0, -1.0, evaluations=40))
    assert [gamma for gamma, _ in trials] == [0.25**j for j in range(len(trials))]
    assert trials[-1][0] < 1e-4
    assert len(trials) < 12


def test_step_rules() -> None:
    assert [simplex.open_loop(t) for t in range(3)] == [1.0, 2 / 3, 0.5]
    assert simplex.official(1, 0.03) == pytest.approx(0.02)
    assert simplex.short_step(-2.0, 8.0) == 0.25
    assert simplex.short_step(-2.0, 1.0) == 1.0
    assert simplex.short_step(2.0, 1.0) == 0.0


@pytest.mark.parametrize("guess", [0.0, 5.0, 100.0])
def test_short_steps_end_where_the_bound_holds(guess: float) -> None:
    curvature = 40.0
    trials = list(simplex.short_steps(lambda g: -4.0 * g + 0.5 * curvature * g * g, 0.0, -4.0, guess, 20))
    gamma, value = trials[-1]
    assert value <= -4.0 * gamma / 2 + 1e-12  # what the bound promises at its minimiser
    assert gamma >= min(0.04, 0.49 * 4.0 / curvature)  # and it is not needlessly short
    if guess == 100.0:
        assert gamma == pytest.approx(0.04)


@pytest.mark.parametrize("beyond", [math.inf, -math.inf, math.nan])
def test_short_steps_are_quartered_where_the_loss_is_not_finite(beyond: float) -> None:
    trials = list(simplex.short_steps(lambda g: -4.0 * g + g * g if g < 0.1 else beyond, 0.0, -4.0, 0.0, 20))
    assert [gamma for gamma, _ in trials] == [1.0, 0.25, 0.0625]
    assert trials[-1][1] < 0.0
