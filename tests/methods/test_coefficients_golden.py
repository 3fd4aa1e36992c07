"""Learnt coefficients and masks against FusionBench 0.2.33 (golden/, made by make_golden_coefficients.py).

Its coefficients are (n, G), ours (G, n); its losses are summed over tasks, ours averaged, which Adam does not see.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz import solver
from fwviz.methods.adamerging import Settings, adapt
from fwviz.methods.concrete import Mask, concrete
from fwviz.methods.concrete import Settings as ConcreteSettings
from fwviz.space.transformed import elected, masked
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import LossName, ParamLayout, Problem
from tests.equality import largest_difference
from tests.methods.test_official_golden import GOLDEN, NAMES, SHAPES, Perceptron

SEED, STEPS = 7, 40


class Entropic(Perceptron):
    """Also knows entropy."""

    def gradient(self, theta: Tensor, *, loss: LossName = "cross_entropy", **values: object) -> tuple[Tensor, Tensor]:
        if loss == "cross_entropy":
            return super().gradient(theta)
        point = theta.clone().requires_grad_()
        w0, b0, w2, b2 = (self.layout.view(point, name) for name in NAMES)
        log_p = [F.log_softmax(F.linear(torch.tanh(F.linear(x, w0, b0)), w2, b2), dim=-1) for x in self.images]
        losses = torch.stack([-(p.exp() * p).sum(dim=-1).mean() for p in log_p])
        losses.mean().backward()
        assert point.grad is not None
        return losses.detach(), point.grad

    def losses(self, theta: Tensor, *, loss: LossName = "cross_entropy", **values: object) -> Tensor:
        return super().losses(theta) if loss == "cross_entropy" else self.gradient(theta, loss=loss)[0]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in ("official_fw", "coefficients"):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            found |= {key: torch.from_numpy(value) for key, value in file.items()}
    return found


@pytest.fixture(scope="module")
def problem(golden: dict[str, Tensor]) -> Problem:
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    layout = ParamLayout(NAMES, SHAPES, (0, *np.cumsum(sizes).tolist()), ("block.0", "block.0", "head", "head"))
    matrix = golden["checkpoints"][:3] - golden["base"]
    vectors = ResidentTaskVectors(layout, ("c0", "c1", "c2"), golden["base"], matrix)
    return Problem(vectors, Entropic(layout, golden["images"], golden["labels"]))


def adapted(problem: Problem, granularity: str) -> Tensor:
    steps = adapt(
        problem,
        Settings(granularity=granularity, batch_size=0, updates=STEPS),  # type: ignore[arg-type]
        problem.groups(granularity),  # type: ignore[arg-type]
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Tensor = end.value
            return found.float()


def test_the_identity_is_autograd_through_the_released_merged_model(
    problem: Problem, golden: dict[str, Tensor]
) -> None:
    groups = problem.groups("tensor")
    family = solver.Affine.free(4, 3)
    theta = torch.empty_like(problem.vectors.base)
    landscape = solver.Landscape(family, problem.vectors, groups, problem.objective, "cross_entropy", theta)
    _, gradient = landscape.slope(golden["rows"].T.double())
    largest_difference("gradient of coefficients", "fusion_bench/layer_wise_fusion", gradient, golden["gradient"].T)
    torch.testing.assert_close(gradient.float(), golden["gradient"].T, rtol=1e-5, atol=1e-7)


def test_layer_wise_adamerging(problem: Problem, golden: dict[str, Tensor]) -> None:
    found = adapted(problem, "tensor")
    largest_difference("adamerging, layer-wise", "fusion_bench", found, golden["layer"].T)
    torch.testing.assert_close(found, golden["layer"].T, rtol=0, atol=2e-5)


def test_task_wise_adamerging(problem: Problem, golden: dict[str, Tensor]) -> None:
    found = adapted(problem, "model")[0]
    largest_difference("adamerging, task-wise", "fusion_bench", found, golden["task"])
    torch.testing.assert_close(found, golden["task"], rtol=0, atol=2e-5)


def test_what_adamerging_plus_plus_starts_from(problem: Problem, golden: dict[str, Tensor]) -> None:
    vectors = elected(problem.vectors, 0.2)
    for i in range(3):
        largest_difference(f"adamerging++, trimmed vector {i}", "fusion_bench", vectors.vector(i), golden["split"][i])
        assert torch.equal(vectors.vector(i), golden["split"][i])


def test_adamerging_plus_plus(problem: Problem, golden: dict[str, Tensor]) -> None:
    found = adapted(replace(problem, vectors=elected(problem.vectors, 0.2)), "tensor")
    largest_difference("adamerging++", "fusion_bench", found, golden["plus_plus"].T)
    torch.testing.assert_close(found, golden["plus_plus"].T, rtol=0, atol=2e-5)


def trained(problem: Problem, monkeypatch: pytest.MonkeyPatch, form: str, updates: int) -> Mask:
    """The mask our method ends with when its uniform numbers are those of the golden run."""
    masks: list[Mask] = []
    made = Mask.__init__

    def remember(self: Mask, *values: object) -> None:
        made(self, *values)  # type: ignore[arg-type]
        masks.append(self)

    monkeypatch.setattr(Mask, "__init__", remember)
    monkeypatch.setattr(Problem, "generator", lambda self, stream=0: torch.Generator().manual_seed(SEED))
    settings = ConcreteSettings(form=form, mask_updates=updates, updates=1, batch_size=0)
    for _ in concrete(problem, settings):
        pass
    return masks[0]


def test_the_mask_of_task_arithmetic(
    problem: Problem, golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = trained(problem, monkeypatch, "task_arithmetic", 8)
    difference = (mask.logits - golden["mask_task_arithmetic"]).abs()
    largest_difference("concrete, logits, 8 updates", "fusion_bench", mask.logits, golden["mask_task_arithmetic"])
    # Their entropy adds 1e-8 inside the logarithm, which Adam shows where a gradient is almost zero.
    assert difference.mean() < 5e-6
    assert difference.max() < 2e-4


def test_the_mask_of_adamerging(problem: Problem, golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    mask = trained(problem, monkeypatch, "adamerging", 1)
    largest_difference("concrete, logits, 1 update", "fusion_bench", mask.logits, golden["mask_adamerging"])
    largest_difference("concrete, mask, 1 update", "fusion_bench", mask.values, golden["mask"])
    torch.testing.assert_close(mask.logits, golden["mask_adamerging"], rtol=0, atol=2e-6)
    torch.testing.assert_close(mask.values, golden["mask"], rtol=1e-5, atol=1e-5)


def test_coefficients_under_a_fixed_mask(problem: Problem, golden: dict[str, Tensor]) -> None:
    """Not clamped there, and none reaches the ends of our box here."""
    found = adapted(replace(problem, vectors=masked(problem.vectors, golden["mask"])), "tensor")
    largest_difference("adamerging under a mask", "fusion_bench", found, golden["masked_layer"].T)
    torch.testing.assert_close(found, golden["masked_layer"].T, rtol=0, atol=2e-5)


def test_the_golden_file_is_not_trivial(golden: dict[str, Tensor]) -> None:
    for name in ("layer", "task", "plus_plus", "masked_layer"):
        assert (golden[name] - 0.3).abs().max() > 0.02
    assert golden["mask_task_arithmetic"].abs().max() > 5e-3
    assert (GOLDEN / "coefficients.npz").stat().st_size < 20_000
    assert Path(__file__).with_name("make_golden_coefficients.py").exists()
