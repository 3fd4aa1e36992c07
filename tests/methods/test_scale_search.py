"""The search of the one global scale, on a convex problem whose best scale is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fwviz.methods.task_arithmetic import Settings, task_arithmetic
from fwviz.methods.ties import Settings as TiesSettings
from fwviz.methods.ties import ties
from fwviz.types import Step
from tests.toy import toy_problem


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
