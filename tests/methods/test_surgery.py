"""Representation Surgery: learning against plain torch modules, and what it must and must not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fwviz.methods.surgery import Settings, distance, initial, surgery
from fwviz.types import Step
from tests.equality import largest_difference
from tests.toy import toy_problem


def last(**values: object) -> list[Step]:
    return list(surgery(toy_problem(n=4, tasks=3), Settings(**values)))  # type: ignore[arg-type]


def test_updates_are_those_of_torch_modules() -> None:
    problem = toy_problem(n=4, tasks=3)
    settings = Settings(rank=2, updates=20, batch=6, rate=0.01)
    step = list(surgery(problem, settings))[-1]
    theta = problem.vectors.base + 0.3 * problem.vectors.matrix.sum(0)  # type: ignore[attr-defined]
    probe, tasks = problem.probe(), problem.objective.tasks
    x = {task: probe.features(theta, task, unlabelled=True) for task in tasks}
    y = {
        task: probe.features(problem.vectors.base + problem.vectors.vector(k), task, unlabelled=True)
        for k, task in enumerate(tasks)  # toy task k is solved best near checkpoint k
    }
    start = initial(x, 2, problem.generator(1))
    modules = {}
    for task, (down, up) in start.items():
        modules[task] = nn.Sequential(nn.Linear(5, 2, bias=False), nn.ReLU(), nn.Linear(2, 5, bias=False))
        modules[task][0].weight.data.copy_(down.detach())
        modules[task][2].weight.data.copy_(up.detach())
    optimisers = {task: torch.optim.Adam(module.parameters(), lr=0.01) for task, module in modules.items()}
    draws = problem.generator(2)
    for _ in range(20):
        for task, module in modules.items():
            rows = torch.randperm(len(x[task]), generator=draws)[:6]
            optimisers[task].zero_grad()
            F.l1_loss(x[task][rows] - module(x[task][rows]), y[task][rows]).backward()
            optimisers[task].step()
    assert step.extension is not None
    for task, module in modules.items():
        part = step.extension.maps[task]
        expected = F.normalize(x[task] - module(x[task]).detach(), dim=-1)
        largest_difference("surgery, 20 updates", "torch autograd and Adam", part(x[task]), expected)
        torch.testing.assert_close(part(x[task]), expected, atol=1e-5, rtol=1e-4)


def test_it_begins_as_the_merge_and_comes_closer() -> None:
    steps = last(rank=4, updates=300, rate=0.01)
    assert [step.t for step in steps] == list(range(11))
    first = steps[0].extension
    assert first is not None
    features = F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    for part in first.maps.values():
        torch.testing.assert_close(part(features), features)
    distances = [float(step.note.split(" are ")[1].split()[0]) for step in steps]
    assert distances[-1] < 0.7 * distances[0]
    weights = [step.coefficients for step in steps]
    assert all(w is not None and torch.equal(w, torch.full((1, 4), 0.3)) for w in weights)


def test_distance_is_the_mean_absolute_difference_of_corrected_features() -> None:
    down, up = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.0]])
    x, y = torch.tensor([[3.0, 1.0], [1.0, 3.0]]), torch.zeros(2, 2)
    # Row 1: relu(3 − 1) = 2, so f̂ = (3 − 4, 1); row 2: relu(−2) = 0, so f̂ = (1, 3).
    value = distance({"a": (down, up)}, {"a": x}, {"a": y})
    assert float(value) == pytest.approx((1 + 1 + 1 + 3) / 4)
    assert float(distance({"a": (down, up)}, {"a": x}, {"a": y}, {"a": torch.tensor([1])})) == pytest.approx(2.0)


@pytest.mark.parametrize("backbone", ["weight_average", "ties"])
def test_it_corrects_the_merge_it_is_told_to(backbone: str) -> None:
    steps = last(backbone=backbone, updates=10)
    if backbone == "weight_average":
        assert steps[-1].coefficients is not None
        assert torch.equal(steps[-1].coefficients, torch.full((1, 4), 0.25))
    else:
        assert steps[-1].delta is not None
        assert all(torch.equal(step.delta, steps[0].delta) for step in steps if step.delta is not None)
