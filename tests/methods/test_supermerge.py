"""SuperMerge: where it starts, what tanh keeps, and that it finds a mixture it can reach."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fwviz.methods.supermerge import Settings, supermerge
from fwviz.types import Problem, Step
from tests.toy import toy_problem

FULL: dict[str, Any] = {"batch_size": 0, "weight_decay": 0.0, "learning_rate": 0.1}


def steps(problem: Problem, **values: Any) -> list[Step]:
    return list(supermerge(problem, Settings(**{"updates": 30, **values})))


def last(problem: Problem, **values: Any) -> Step:
    return steps(problem, **values)[-1]


def test_finds_a_mixture_with_a_negative_coefficient() -> None:
    mixture = torch.tensor([0.6, -0.4, 0.2, 0.0, 0.0])
    found = last(toy_problem(mixture=mixture), updates=300, granularity="model", **FULL)
    assert found.coefficients is not None
    torch.testing.assert_close(found.coefficients[0], mixture, rtol=0, atol=0.01)
    assert found.loss == pytest.approx(0.0, abs=1e-3)
    assert "20 % negative" in found.note or "40 % negative" in found.note


def test_tanh_keeps_coefficients_between_minus_one_and_one() -> None:
    problem = toy_problem(mixture=torch.tensor([1.5, -1.3, 0.0, 0.0, 0.0]))
    for step in steps(problem, updates=300, granularity="model", **FULL):
        assert step.coefficients is not None
        assert (step.coefficients.abs() <= 1).all()
    free = last(problem, updates=300, granularity="model", tanh=False, **FULL)
    assert free.coefficients is not None
    assert float(free.coefficients[0, 0]) == pytest.approx(1.5, abs=0.05)
    assert free.loss is not None


def test_starts_where_it_is_told() -> None:
    for values, expected in (
        ({}, 0.0),
        ({"init": "task_arithmetic"}, 0.3),
        ({"init": "task_arithmetic", "init_scale": 0.7}, 0.7),
        ({"init": "task_arithmetic", "init_scale": 0.7, "tanh": False}, 0.7),
    ):
        shown, first, update = steps(toy_problem(), **values)[:3]
        for step in (shown, first):
            torch.testing.assert_close(step.coefficients, torch.full((6, 5), expected))
        assert (first.t, first.inner, update.t, update.inner) == (0, 0, 1, 1)


def test_the_first_update_moves_every_weight_by_the_rate_downhill() -> None:
    problem = toy_problem()
    step = steps(problem, updates=1, batch_size=0, weight_decay=0.0, learning_rate=0.05, anneal=False)[2]
    groups = problem.groups("tensor")
    _, gradient = problem.objective.gradient(problem.vectors.base)
    slopes = problem.vectors.scores(gradient, groups)
    assert step.coefficients is not None
    torch.testing.assert_close(step.coefficients, -math.tanh(0.05) * slopes.sign(), rtol=1e-4, atol=1e-6)


def test_weight_decay_pulls_towards_the_base() -> None:
    problem = toy_problem()
    loose, tight = (last(problem, updates=100, batch_size=0, weight_decay=decay) for decay in (0.0, 5.0))
    assert loose.coefficients is not None
    assert tight.coefficients is not None
    assert tight.coefficients.norm() < 0.95 * loose.coefficients.norm()


def test_finer_granularity_fits_better() -> None:
    losses = [last(toy_problem(), updates=150, granularity=g, **FULL).loss for g in ("model", "layer", "tensor")]
    assert losses[0] > losses[1] > losses[2]  # type: ignore[operator]


def test_iterates_are_spread_over_the_updates() -> None:
    shown = steps(toy_problem(), updates=25, batch_size=4)
    completed = [step for step in shown if step.inner == 0]
    assert [step.t for step in completed] == list(range(11))
    assert sum(step.inner > 0 for step in shown) == 25 + 1
    assert completed[-1].status == "max_steps"
    assert "25 updates: calibration loss" in completed[-1].note
    assert len([step for step in steps(toy_problem(), updates=3) if step.inner == 0]) == 4


def test_seeds_draw_their_own_batches() -> None:
    problems = [toy_problem(seed=0, noise=1.0) for _ in range(2)]
    other = Problem(problems[1].vectors, problems[1].objective, seed=5)
    first, second = last(problems[0], batch_size=4), last(other, batch_size=4)
    assert not torch.equal(first.coefficients, second.coefficients)  # type: ignore[arg-type]
