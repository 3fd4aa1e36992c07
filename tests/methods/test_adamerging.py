"""AdaMerging: its box, its losses, and that it says so when learning without labels goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.methods._answers import Answers
from fwviz.methods.adamerging import Settings, adamerging
from fwviz.types import Problem, Step
from tests.toy import Quadratic, toy_problem


def steps(problem: Problem, **values: Any) -> list[Step]:
    return list(adamerging(problem, Settings(**{"updates": 30, "batch_size": 0, **values})))


def test_coefficients_stay_in_their_box_and_reach_its_ends() -> None:
    problem = toy_problem(mixture=torch.tensor([1.6, -0.7, 0.4, 0.0, 0.0]))
    shown = steps(problem, updates=400, learning_rate=0.02, granularity="model")
    for step in shown:
        assert step.coefficients is not None
        assert (step.coefficients >= 0).all()
        assert (step.coefficients <= 1).all()
    last = shown[-1].coefficients
    assert last is not None
    assert float(last[0, 0]) == pytest.approx(1.0)
    assert float(last[0, 1]) == pytest.approx(0.0)


def test_a_coefficient_that_reached_the_end_can_return() -> None:
    """Where the released code clamps when merging only, a weight outside the box has no gradient and stays there."""
    problem = toy_problem(n=1, tasks=1, mixture=torch.tensor([0.9]))
    quadratic: Any = problem.objective
    shown = steps(problem, updates=60, learning_rate=0.2, init_scale=0.0, granularity="model")
    values = [float(step.coefficients[0, 0]) for step in shown]  # type: ignore[index]
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.9, abs=0.02)
    assert quadratic.calls > 60


def test_starts_from_task_arithmetic_and_moves_at_most_the_rate() -> None:
    first, _, second = steps(toy_problem())[:3]
    torch.testing.assert_close(first.coefficients, torch.full((6, 5), 0.3))
    assert second.coefficients is not None
    moved = second.coefficients - 0.3
    torch.testing.assert_close(moved.abs(), torch.full((6, 5), 1e-3), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("granularity", "rows"), [("model", 1), ("layer", 4), ("tensor", 6)])
def test_task_wise_and_layer_wise(granularity: str, rows: int) -> None:
    last = steps(toy_problem(), granularity=granularity)[-1]
    assert last.coefficients is not None
    assert last.coefficients.shape == (rows, 5)


@dataclass
class Loud(Quadratic):
    """Also remembers by which loss it was asked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.heard: set[str] = set()
        self.learnt: set[str] = set()

    def losses(self, theta: Tensor, **values: Any) -> Tensor:
        self.heard.add(values["loss"])
        return super().losses(theta, **values)

    def gradient(self, theta: Tensor, **values: Any) -> tuple[Tensor, Tensor]:
        self.learnt.add(values["loss"])
        return super().gradient(theta, **values)


@pytest.mark.parametrize("loss", ["entropy", "cross_entropy"])
def test_asks_for_the_loss_it_was_set_to(loss: str) -> None:
    quadratic: Any = toy_problem().objective
    loud = Loud(quadratic.tasks, quadratic.centres, quadratic.weights, quadratic.noise, quadratic.shapes)
    steps(Problem(toy_problem().vectors, loud), loss=loss, updates=2)
    assert loud.learnt == {loss}
    # Labels are looked at for the warning only.
    assert loud.heard == {loss, "cross_entropy"}


class Seen(Quadratic):
    """Answers "t0" with all four classes at the base, and with fewer the further θ moves away."""

    def features(self, theta: Tensor, task: str, **values: Any) -> Tensor:
        spread = torch.eye(4) * float(torch.exp(-(theta - self.base).norm())) if task == "t0" else torch.eye(4)
        return spread + torch.tensor([1.0, 0.0, 0.0, 0.0]) * 0.5

    def labels(self, task: str) -> Tensor:
        return torch.arange(4)

    def head(self, task: str) -> Tensor:
        return 20.0 * torch.eye(4)

    def squared_gradients(self, theta: Tensor, task: str, **values: Any) -> Tensor:
        raise AssertionError

    def input_grams(self, theta: Tensor, task: str, **values: Any) -> dict[str, Tensor]:
        raise AssertionError

    base: Tensor


def test_a_collapse_of_the_answers_is_said() -> None:
    problem = toy_problem()
    quadratic: Any = problem.objective
    seen = Seen(quadratic.tasks, quadratic.centres, quadratic.weights, quadratic.noise, quadratic.shapes)
    seen.base = problem.vectors.base
    watched = Problem(problem.vectors, seen)
    answers = Answers(watched, problem.vectors.base)
    assert answers.warning(problem.vectors.base) == ""
    far = answers.warning(problem.vectors.base + 3.0)
    assert "the answers collapse on t0 (1." in far
    assert "at the start" in far
    assert "t1" not in far
    said = [step.note for step in steps(watched, updates=60, learning_rate=0.2, init_scale=0.0)]
    assert any("collapse on t0" in note for note in said)
    silent = [step.note for step in steps(watched, updates=60, learning_rate=0.2, init_scale=0.0, loss="cross_entropy")]
    assert not any("collapse" in note for note in silent)


def test_a_model_that_grows_surer_and_worse_is_said_to() -> None:
    problem = toy_problem()
    base = problem.vectors.base
    quadratic: Any = problem.objective
    better = base + 0.3 * (quadratic.centres.mean(dim=0) - base)
    answers = Answers(problem, base)
    assert answers.warning(base) == ""
    assert answers.warning(better) == ""
    assert "at its least" in answers.warning(base)
    start, worse = (float(quadratic.losses(theta).mean()) for theta in (base, base + 3.0))
    assert answers.warning(base + 3.0) == (
        f"; surer, not better: calibration loss {start:.2f} at the start, {worse:.2f} now"
    )


def test_looking_changes_nothing() -> None:
    """The warning reads labels; what is learnt must be the same where they are turned upside down."""
    problem = toy_problem()

    class Upside(Quadratic):
        def losses(self, theta: Tensor, **values: Any) -> Tensor:
            found = super().losses(theta, **values)
            return -found if values["loss"] == "cross_entropy" else found

    quadratic: Any = problem.objective
    other = Upside(quadratic.tasks, quadratic.centres, quadratic.weights, quadratic.noise, quadratic.shapes)
    found = [steps(Problem(problem.vectors, o))[-1].coefficients for o in (quadratic, other)]
    assert torch.equal(*found)  # type: ignore[arg-type]
