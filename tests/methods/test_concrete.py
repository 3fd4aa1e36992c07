"""Concrete: its mask, the closed form of the mask's gradient against autograd, and what each form learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, RelaxedBernoulli

from fwviz.methods.concrete import Mask, Settings, concrete
from fwviz.space.layout import build_layout
from fwviz.types import Problem, Step
from tests.equality import largest_difference
from tests.toy import toy_layout, toy_problem

DEVICE = torch.device("cpu")


def ranges() -> list[tuple[int, int]]:
    return list(toy_layout().groups("tensor").ranges())


def steps(problem: Problem, **values: Any) -> list[Step]:
    from dataclasses import replace

    quick: dict[str, Any] = {"mask_updates": 30, "updates": 20, "batch_size": 0}
    return [
        replace(step, delta=None if step.delta is None else step.delta.clone())
        for step in concrete(problem, Settings(**{**quick, **values}))
    ]


def test_the_mask_is_a_relaxed_bernoulli_over_its_mean() -> None:
    layout = toy_layout()
    mask = Mask(layout, 0.5, 0.0, DEVICE)
    mask.logits.copy_(torch.linspace(-2, 2, layout.size))
    mask.draw(torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    for a, b in ranges():
        relaxed = RelaxedBernoulli(temperature=torch.tensor(0.5), logits=mask.logits[a:b]).rsample()
        torch.testing.assert_close(mask.values[a:b], relaxed / relaxed.mean(), rtol=1e-4, atol=1e-6)
        assert float(mask.values[a:b].mean()) == pytest.approx(1.0, rel=1e-5)


def test_the_expected_mask_is_the_probability() -> None:
    mask = Mask(toy_layout(), 0.5, 0.0, DEVICE)
    mask.logits.copy_(torch.linspace(-3, 3, toy_layout().size))
    mask.fix("expected", torch.Generator())
    for a, b in ranges():
        probability = Bernoulli(logits=mask.logits[a:b]).probs
        torch.testing.assert_close(mask.values[a:b], probability / probability.mean())


def test_a_mask_that_keeps_nothing_of_a_tensor_is_zero_there() -> None:
    """At a low temperature σ underflows; in a tensor of one number there may be nothing to divide by."""
    mask = Mask(build_layout({"scale": (), "weight": (2, 3)}), 0.05, -20.0, DEVICE)
    mask.draw(torch.Generator().manual_seed(0))
    assert not mask.values.any()
    mask.update(torch.ones_like(mask.values), 0.1)
    assert mask.logits.isfinite().all()


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_gradient_of_the_logits_is_autograds(temperature: float) -> None:
    """ℓ = ½·Σ w·(m ⊙ d − c)² through RelaxedBernoulli, its mean and division; then one step of torch's Adam."""
    layout, random = toy_layout(), torch.Generator().manual_seed(1)
    start = torch.randn(layout.size, generator=random)
    weight, target = torch.rand(layout.size, generator=random), torch.randn(layout.size, generator=random)
    move = torch.randn(layout.size, generator=random)
    logits = start.clone().requires_grad_()
    torch.manual_seed(8)
    parts = []
    for a, b in ranges():
        relaxed = RelaxedBernoulli(temperature=torch.tensor(temperature), logits=logits[a:b]).rsample()
        parts.append(relaxed / relaxed.mean())
    (0.5 * weight * (torch.cat(parts) * move - target).square()).sum().backward()

    mask = Mask(layout, temperature, 0.0, DEVICE)
    mask.logits.copy_(start)
    mask.draw(torch.Generator().manual_seed(8))
    slope = weight * (mask.values * move - target) * move
    mask.update(slope, 0.01)
    assert logits.grad is not None
    largest_difference("concrete, gradient of the logits", "torch autograd", slope, logits.grad)
    torch.testing.assert_close(slope, logits.grad, rtol=1e-4, atol=1e-6)
    torch.optim.Adam([logits], lr=0.01).step()
    torch.testing.assert_close(mask.logits, logits.detach(), rtol=0, atol=1e-5)


def test_a_mask_finds_the_coordinates_that_help() -> None:
    """Half of every task vector is noise to all tasks: its probabilities fall, the loss with them."""
    problem = toy_problem(n=2, tasks=2)
    vectors: Any = problem.vectors
    objective: Any = problem.objective
    helps = torch.rand(vectors.layout.size, generator=torch.Generator().manual_seed(0)) < 0.5
    objective.centres[:] = vectors.base + torch.where(helps, 0.6 * vectors.matrix.sum(dim=0), 0.0)
    masks: list[Tensor] = []
    made = Mask.update

    def remember(self: Mask, slope: Tensor, rate: float) -> None:
        made(self, slope, rate)
        masks.append(self.logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mask, "update", remember)
        shown = steps(problem, form="task_arithmetic", mask_updates=200, mask_rate=0.05, final_mask="expected")
    logits = masks[-1]
    assert logits[helps].mean() > 0.5
    assert logits[~helps].mean() < -0.5
    completed = [step for step in shown if step.inner == 0]
    assert completed[-1].loss < 0.75 * completed[0].loss  # type: ignore[operator]


@pytest.mark.parametrize("form", ["task_arithmetic", "adamerging"])
def test_starts_from_task_arithmetic_and_reports_what_it_keeps(form: str) -> None:
    problem = toy_problem()
    shown = steps(problem, form=form)
    expected = 0.3 * sum(problem.vectors.vector(i) for i in range(5))
    for step in shown[:2]:
        torch.testing.assert_close(step.delta, expected, rtol=1e-4, atol=1e-5)
    completed = [step for step in shown if step.inner == 0]
    assert [step.t for step in completed] == list(range(11 if form == "task_arithmetic" else 21))
    for step in completed:
        loss = float(problem.objective.losses(problem.vectors.base + step.delta).mean())
        assert step.loss == pytest.approx(loss, rel=1e-4)
    assert completed[-1].status == "max_steps"
    assert all(step.status == "running" for step in completed[:-1])


def test_with_coefficients_given_the_merge_is_the_mask_times_their_sum() -> None:
    """Task arithmetic with the expected mask: δ / Σ λτ has mean one in each tensor."""
    problem = toy_problem()
    last = steps(problem, form="task_arithmetic", final_mask="expected")[-1]
    total = 0.3 * sum(problem.vectors.vector(i) for i in range(5))
    assert last.delta is not None
    mask = last.delta / total
    assert (mask > 0).all()
    for a, b in ranges():
        assert float(mask[a:b].mean()) == pytest.approx(1.0, rel=1e-3)


def test_the_second_stage_learns_coefficients_under_the_fixed_mask() -> None:
    problem = toy_problem()
    completed = [step for step in steps(problem, updates=100, learning_rate=0.02) if step.inner == 0]
    assert completed[-1].loss < completed[10].loss  # type: ignore[operator]
    assert "mask fixed" in completed[-1].note
