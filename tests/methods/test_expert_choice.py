"""Whose checkpoint becomes a task's expert, and what a router is given."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fwviz.methods._experts import expert_checkpoints, make_router
from fwviz.tasks.router import OracleRouter, RandomRouter, TrainedRouter
from fwviz.types import FwvizError
from tests.toy import toy_problem


def test_the_best_of_a_tasks_own_checkpoints_is_taken_in_any_order() -> None:
    problem = dataclasses.replace(toy_problem(n=5, tasks=3), owners=("t1", "t0", "t0", "elsewhere", ""))
    losses = [
        float(problem.objective.losses(problem.vectors.base + problem.vectors.vector(i), tasks=("t0",)))
        for i in range(5)
    ]
    best = 1 if losses[1] < losses[2] else 2
    assert expert_checkpoints(problem) == {"t0": best, "t1": 0}  # t2 has nobody of its own
    order = [4, 2, 0, 1, 3]
    shuffled = dataclasses.replace(
        problem, vectors=problem.vectors.subset(order), owners=tuple(problem.owners[i] for i in order)
    )
    assert {t: order[i] for t, i in expert_checkpoints(shuffled).items()} == {"t0": best, "t1": 0}


def test_without_owners_every_checkpoint_is_a_candidate() -> None:
    assert expert_checkpoints(toy_problem(n=5, tasks=3)) == {"t0": 0, "t1": 1, "t2": 2}


def test_nobody_to_ask_is_said_plainly() -> None:
    problem = dataclasses.replace(toy_problem(n=2, tasks=2), owners=("elsewhere", "far away"))
    with pytest.raises(FwvizError, match="nothing can be an expert"):
        expert_checkpoints(problem)


def test_routers_are_those_asked_for() -> None:
    problem = toy_problem(n=3, tasks=3)
    theta = problem.vectors.base
    assert isinstance(make_router(problem, theta, "oracle", "hard", 1.0), OracleRouter)
    drawn = make_router(problem, theta, "random", "hard", 1.0)
    assert isinstance(drawn, RandomRouter)
    assert drawn.seed == problem.seed
    trained = make_router(problem, theta, "trained", "soft", 1.0)
    assert isinstance(trained, TrainedRouter)
    assert trained.choice == "soft"
    less = make_router(problem, theta, "trained", "soft", 0.1)
    assert isinstance(less, TrainedRouter)
    assert not torch.equal(trained.first, less.first)
    for k, task in enumerate(problem.objective.tasks):
        features = problem.probe().features(theta, task, unlabelled=True)
        assert (trained.shares(features, task).argmax(1) == k).float().mean() > 0.8
