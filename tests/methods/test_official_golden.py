"""Our official variants against what the released FW-Merging code computed (golden/, made by make_golden.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.methods import fw_hard, fw_soft
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import LossName, ParamLayout, Problem, Step
from tests.equality import largest_difference

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")
SHAPES = ((5, 6), (5,), (3, 5), (3,))


class Perceptron:
    """Cross-entropy of the two-layer perceptron of make_golden.py; every batch is the whole set of its task."""

    def __init__(self, layout: ParamLayout, images: Tensor, labels: Tensor) -> None:
        self.layout, self.images, self.labels = layout, images, labels
        self.tasks = tuple(f"t{k}" for k in range(len(images)))

    def _losses(self, theta: Tensor, tasks: Sequence[str] | None) -> Tensor:
        w0, b0, w2, b2 = (self.layout.view(theta, name) for name in NAMES)
        losses = []
        for task in tasks or self.tasks:
            k = self.tasks.index(task)
            logits = F.linear(torch.tanh(F.linear(self.images[k], w0, b0)), w2, b2)
            losses.append(F.cross_entropy(logits, self.labels[k]))
        return torch.stack(losses)

    def losses(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self._losses(theta, tasks)

    def gradient(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        point = theta.clone().requires_grad_()
        losses = self._losses(point, tasks)
        losses.mean().backward()
        assert point.grad is not None
        return losses.detach(), point.grad


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "official_fw.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def chosen() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "official_fw.json").read_text())
    return found


@pytest.fixture(scope="module")
def problem(golden: dict[str, np.ndarray]) -> Problem:
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    offsets = (0, *np.cumsum(sizes).tolist())
    layout = ParamLayout(NAMES, SHAPES, offsets, ("block.0", "block.0", "head", "head"))
    base = torch.from_numpy(golden["base"])
    matrix = torch.from_numpy(golden["checkpoints"]) - base
    vectors = ResidentTaskVectors(layout, tuple(f"c{i}" for i in range(len(matrix))), base, matrix)
    objective = Perceptron(layout, torch.from_numpy(golden["images"]), torch.from_numpy(golden["labels"]))
    return Problem(vectors, objective)


def theta_of(problem: Problem, step: Step) -> Tensor:
    if step.coefficients is None:
        assert step.delta is not None
        return problem.vectors.base + step.delta
    return problem.vectors.combine(step.coefficients, problem.groups(step.granularity))


def run(problem: Problem, steps: Any) -> tuple[Tensor, list[Step]]:
    """θ of the last iterate, and all iterates."""
    theta, iterates = problem.vectors.base, []
    for step in steps:
        if step.inner == 0:
            theta = theta_of(problem, step).clone()
            iterates.append(step)
    return theta, iterates


@pytest.mark.parametrize("kind", ["task", "layer"])
@pytest.mark.parametrize("merge_fn", ["convex", "ties"])
def test_hard_matches_the_released_code(
    problem: Problem, golden: dict[str, np.ndarray], chosen: dict[str, Any], kind: str, merge_fn: str
) -> None:
    settings = fw_hard.Settings(
        max_steps=4,
        init="task_arithmetic" if merge_fn == "convex" else "base",
        granularity="model" if kind == "task" else "tensor",
        step_rule="official",
        official_scale=0.1 * 0.3,
        merge_fn=merge_fn,
        score="tensor_cosine",
        skip_uphill=False,
        extra_vertices="initial",
        epsilon=0.0,
    )
    theta, iterates = run(problem, fw_hard.fw_hard(problem, settings))
    assert len(iterates) == 5
    expected = chosen[f"hard_{kind}_{merge_fn}"]
    found = [[names[0] for names in step.vertices] for step in iterates[1:]]
    assert found == [[pick] if isinstance(pick, str) else [pick[name] for name in NAMES] for pick in expected]
    largest_difference(f"fw_hard, {kind}, {merge_fn}", "fusion_bench", theta, golden[f"hard_{kind}_{merge_fn}"])
    torch.testing.assert_close(theta, torch.from_numpy(golden[f"hard_{kind}_{merge_fn}"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["task", "layer"])
@pytest.mark.parametrize(("inner", "max_steps", "tolerance"), [("none", 4, 2e-6), ("official", 3, 2e-5)])
def test_soft_matches_the_released_code(
    problem: Problem,
    golden: dict[str, np.ndarray],
    chosen: dict[str, Any],
    kind: str,
    inner: str,
    max_steps: int,
    tolerance: float,
) -> None:
    settings = fw_soft.Settings(
        max_steps=max_steps,
        granularity="model" if kind == "task" else "tensor",
        coefficient_granularity="tensor",
        inner=inner,
        official_updates=25,
        score="tensor_cosine",
        extra_vertices="none",
        epsilon=0.0,
    )
    theta, iterates = run(problem, fw_soft.fw_soft(problem, settings))
    picks = chosen[f"soft_{kind}_{inner}"]
    per_step = [picks[3 * t : 3 * t + 3] for t in range(max_steps)]
    for step, expected in zip(iterates[1:], per_step, strict=True):
        rows = [expected] if kind == "task" else [[pick[name] for pick in expected] for name in NAMES]
        assert [list(row) for row in step.vertices] == rows
    largest_difference(f"fw_soft, {kind}, {inner}", "fusion_bench", theta, golden[f"soft_{kind}_{inner}"])
    torch.testing.assert_close(theta, torch.from_numpy(golden[f"soft_{kind}_{inner}"]), rtol=0, atol=tolerance)
