"""The search of the one global scale, on a convex problem whose best scale is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fwviz.methods.task_arithmetic import Settings, task_arithmetic
from fwviz.methods.ties import Settings as TiesSettings
from fwviz.methods.ties import ties
from fwviz.types import FwvizError, Step
from tests.toy import beside_a_cliff, toy_problem


def best_scale(problem: Any, delta: torch.Tensor) -> float:
    """argmin_s Σ_k Σ_p w·(θ₀ + s·δ − c)² = Σ w·(c − θ₀)·δ / Σ w·δ²."""
    objective = problem.objective
    reach = (objective.weights * (objective.centres - problem.vectors.base) * delta).sum()
    return float(reach / (objective.weights * delta.square()).sum())


def test_task_arithmetic_stays_linear_and_finds_the_nearest_scale() -> None:
    problem = toy_problem(n=3)
    vectors: Any = problem.vectors
    steps = list(task_arithmetic(problem, Settings(scale_search="calibration", scale_points=40, scale_most=1.0)))
    optimum = best_scale(problem, vectors.matrix.sum(dim=0))
    assert 0.1 < optimum < 0.9
    assert steps[-1].step_size == pytest.approx(round(optimum * 40) / 40)
    assert [step.step_size for step in steps[:-1]] == [pytest.approx(j / 40) for j in range(1, 41)]
    for step in steps:
        assert step.coefficients is not None
        assert step.step_size is not None
        torch.testing.assert_close(step.coefficients, torch.full((1, 3), step.step_size))
        assert step.in_hull == (3 * step.step_size <= 1.0 + 1e-6)


def test_a_delta_is_scaled_anew_for_every_trial() -> None:
    problem = toy_problem(n=3)
    (plain,) = ties(problem, TiesSettings(scale=1.0, density=0.5))
    assert plain.delta is not None
    whole = plain.delta.clone()
    for step in ties(problem, TiesSettings(scale_search="calibration", density=0.5, scale_points=7)):
        assert step.delta is not None
        assert step.step_size is not None
        torch.testing.assert_close(step.delta, step.step_size * whole)
    assert step.step_size == pytest.approx(round(best_scale(problem, whole) * 3.5) / 3.5)


def test_of_equal_losses_the_smaller_scale_wins() -> None:
    problem: Any = toy_problem(n=3)
    problem.objective.weights.zero_()
    last: Step = list(task_arithmetic(problem, Settings(scale_search="calibration")))[-1]
    assert last.step_size == pytest.approx(0.1)


@pytest.mark.parametrize("beyond", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("method", [task_arithmetic, ties])
def test_a_scale_that_is_not_finite_is_rejected(method: Any, beyond: float) -> None:
    kind = Settings if method is task_arithmetic else TiesSettings
    settings = kind(scale_search="calibration", scale_most=1.0)
    vectors: Any = toy_problem(n=3).vectors
    (step,) = method(toy_problem(n=3), kind(scale=1.0))
    whole = float((vectors.matrix.sum(dim=0) if step.delta is None else step.delta).norm())
    steps = list(method(beside_a_cliff(toy_problem(n=3), 0.25 * whole, beyond), settings))
    assert [step.rejected for step in steps] == [False, False, *[True] * 8, False]
    assert all("rejected, the calibration loss there is not finite" in step.note for step in steps[2:-1])
    assert all(step.loss is None for step in steps[2:-1])
    finite = {step.step_size: step.loss for step in steps[:2]}
    assert steps[-1].step_size == min(finite, key=lambda scale: finite[scale])  # type: ignore[arg-type, return-value]
    with pytest.raises(FwvizError, match=r"finite at no scale from 0\.1 up: lower scale_most"):
        list(method(beside_a_cliff(toy_problem(n=3), 1e-6, beyond), settings))
