"""Fisher merging and RegMean against FusionBench's results for the same measurements, and against their definitions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.methods.fisher import Settings as FisherSettings
from fwviz.methods.fisher import fisher
from fwviz.methods.regmean import Settings as RegMeanSettings
from fwviz.methods.regmean import regmean
from fwviz.pools.open import Pool
from fwviz.space.layout import build_layout, unflatten
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.tasks.data import load_split
from fwviz.tasks.objectives import CalibrationObjective
from fwviz.types import Problem, Step
from tests.equality import largest_difference
from tests.toy import Quadratic

GOLDEN = Path(__file__).parent / "golden" / "regression.npz"
# The order in the golden file, which is that of no layout: the layout sorts by layer.
SHAPES = {
    "embeddings.class_embedding": (5,),
    "layers.0.fc1.weight": (6, 4),
    "layers.0.fc1.bias": (6,),
    "layers.0.fc2.weight": (4, 6),
}
LAYOUT = build_layout(SHAPES)


@dataclass
class Measured(Quadratic):
    """A probe that answers with recorded measurements of task t; what it was asked is kept."""

    fishers: Any = None
    grams: Any = None
    asked: Any = None

    def labels(self, task: str) -> Tensor:
        return torch.zeros(20, dtype=torch.int64)

    def squared_gradients(self, theta: Tensor, task: str, **options: Any) -> Tensor:
        self.asked.append((task, theta, options))
        found: Tensor = self.fishers[self.tasks.index(task)]
        return found.clone()

    def input_grams(self, theta: Tensor, task: str, **options: Any) -> dict[str, Tensor]:
        self.asked.append((task, theta, options))
        return {name: options["count"] * gram.clone() for name, gram in self.grams[self.tasks.index(task)].items()}


def reordered(flat: np.ndarray) -> Tensor:
    """A flat vector of the golden file in the layout's order."""
    tensors, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        tensors[name] = torch.from_numpy(flat[start : start + size].astype(np.float32))
        start += size
    return torch.cat([tensors[name] for name in LAYOUT.names])


@pytest.fixture
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def problem(golden: dict[str, np.ndarray]) -> Problem:
    """Three checkpoints, each with a task of its own whose measurements are those of the file."""
    base = reordered(golden["base"])
    thetas = torch.stack([reordered(row) for row in golden["checkpoints"]])
    names = [name for name in SHAPES if f"gram {name}" in golden]
    objective = Measured(
        tasks=("a", "b", "c"),
        centres=torch.zeros(3, LAYOUT.size),
        weights=torch.ones(3, LAYOUT.size),
        noise=torch.zeros(2, LAYOUT.size),
        shapes=SHAPES,
        fishers=[reordered(row) for row in golden["fishers"]],
        grams=[{name: torch.from_numpy(golden[f"gram {name}"][k]) for name in names} for k in range(3)],
        asked=[],
    )
    vectors = ResidentTaskVectors(LAYOUT, ("x", "y", "z"), base, thetas - base)
    return Problem(vectors, objective, owners=("a", "b", "c"))


def merged(problem: Problem, steps: Any) -> Tensor:
    last: Step = list(steps)[-1]
    assert last.delta is not None
    return problem.vectors.base + last.delta


@pytest.mark.parametrize(("normalise", "key"), [(True, "fisher"), (False, "fisher_raw")])
def test_fisher_equals_fusion_bench(problem: Problem, golden: dict[str, np.ndarray], normalise: bool, key: str) -> None:
    found = merged(problem, fisher(problem, FisherSettings(normalise=normalise)))
    largest_difference("fisher", f"fusion_bench/{key}", found, reordered(golden[key]))
    torch.testing.assert_close(found, reordered(golden[key]), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("factor", [0.95, 0.6, 1.0])
def test_regmean_equals_fusion_bench(problem: Problem, golden: dict[str, np.ndarray], factor: float) -> None:
    found = merged(problem, regmean(problem, RegMeanSettings(off_diagonal=factor)))
    expected = reordered(golden[f"regmean {factor:g}"])
    largest_difference("regmean", f"fusion_bench/regmean, off-diagonal {factor:g}", found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_checkpoint_is_measured_at_itself_on_its_own_task(problem: Problem) -> None:
    objective: Any = problem.objective
    for run, settings in ((fisher, FisherSettings()), (regmean, RegMeanSettings())):
        objective.asked.clear()
        list(run(problem, settings))  # type: ignore[operator]
        assert [task for task, _, _ in objective.asked] == ["a", "b", "c"]
        for i, (_, theta, options) in enumerate(objective.asked):
            torch.testing.assert_close(theta, problem.vectors.base + problem.vectors.vector(i))
            assert options["count"] == 20  # all there are


def test_a_stranger_is_measured_on_all_tasks(problem: Problem) -> None:
    stranger = replace(problem, owners=("a", "elsewhere", "c"))
    objective: Any = problem.objective
    for run, settings in ((fisher, FisherSettings(samples=30)), (regmean, RegMeanSettings(samples=30))):
        objective.asked.clear()
        last = list(run(stranger, settings))[-1]  # type: ignore[operator]
        assert [(task, options["count"]) for task, _, options in objective.asked] == [
            ("a", 20), ("a", 10), ("b", 10), ("c", 10), ("c", 20),
        ]  # fmt: skip
        assert "1 checkpoint's own task is not among the chosen" in last.note
    # Its information is then the mean of the three: recompute the merge with that in its place.
    objective.fishers[1] = torch.stack(objective.fishers).mean(0)
    expected = merged(problem, fisher(problem, FisherSettings(samples=30)))
    with np.load(GOLDEN) as file:
        objective.fishers[1] = reordered(file["fishers"][1])
    torch.testing.assert_close(merged(stranger, fisher(stranger, FisherSettings(samples=30))), expected)


def test_regmean_solves_its_least_squares(problem: Problem) -> None:
    """Off-diagonal entries whole: at the solution the gradient Σ Gᵢ(W − Wᵢ)ᵀ vanishes."""
    vectors, objective = problem.vectors, problem.objective
    found = unflatten(LAYOUT, merged(problem, regmean(problem, RegMeanSettings(off_diagonal=1.0))))
    for name, weight in found.items():
        rows = [unflatten(LAYOUT, vectors.base + vectors.vector(i))[name] for i in range(3)]
        if name not in objective.grams[0]:  # type: ignore[attr-defined]
            torch.testing.assert_close(weight, torch.stack(rows).mean(0))
            continue
        grams = [grams[name] for grams in objective.grams]  # type: ignore[attr-defined]
        slope = sum((weight - row) @ gram for row, gram in zip(rows, grams, strict=True))
        assert float(torch.as_tensor(slope).abs().max()) < 1e-4
        assert float((weight - torch.stack(rows).mean(0)).abs().max()) > 0.01  # and it is no mean


def test_directions_without_input_stay_at_the_base(problem: Problem) -> None:
    objective: Any = problem.objective
    for grams in objective.grams:
        for gram in grams.values():
            gram[0], gram[:, 0] = 0.0, 0.0
    (step,) = regmean(problem, RegMeanSettings(off_diagonal=1.0))
    assert step.delta is not None
    delta = unflatten(LAYOUT, step.delta)
    for name in objective.grams[0]:
        torch.testing.assert_close(delta[name][:, 0], torch.zeros(len(delta[name])), atol=1e-6, rtol=0)
        assert float(delta[name][:, 1:].abs().max()) > 0.05


def test_copies_of_one_checkpoint_merge_to_it(tiny_pool: Pool) -> None:
    """On a real model: whatever the measurements, the mean of equal checkpoints is that checkpoint."""
    card = tiny_pool.card
    task = card.checkpoint(tiny_pool.checkpoint_ids[0]).task
    objective = CalibrationObjective(
        tiny_pool.backbone(), {task: load_split(card, card.task(task), "calibration")}, tiny_pool.heads([task])
    )
    vectors = tiny_pool.task_vectors(tiny_pool.checkpoint_ids).subset([0, 0])
    twice = Problem(vectors, objective, owners=(task, task))
    for steps in (
        fisher(twice, FisherSettings(samples=6, passes=4)),
        regmean(twice, RegMeanSettings(samples=6)),
    ):
        torch.testing.assert_close(merged(twice, steps) - vectors.base, vectors.vector(0), rtol=1e-3, atol=1e-5)
