"""PCB against a direct computation on whole vectors with full sorts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.methods import pcb as pcb_module
from fwviz.methods.pcb import Settings, pcb
from fwviz.space import blocks as blocks_module
from fwviz.types import Problem
from tests.toy import toy_problem


def delta_of(problem: Problem, **settings: Any) -> Tensor:
    (step,) = list(pcb(problem, Settings(**settings)))
    assert step.delta is not None
    return step.delta


@pytest.mark.parametrize("checkpoints", [5, 100])  # e⁸⁹ is more than float32 holds
@pytest.mark.parametrize("cells", [1 << 18, 15])
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_is_the_definition(checkpoints: int, cells: int, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "_CELLS", cells)
    monkeypatch.setattr(pcb_module, "CLAMPED", 0.05)
    problem: Any = toy_problem(n=checkpoints)
    tau = problem.vectors.matrix.double()
    n, size = tau.shape
    ordered = tau.abs().sort(dim=1).values
    low, high = ordered[:, int(0.05 * size)], ordered[:, int(0.95 * size - 1)]
    magnitude = torch.minimum(torch.maximum(tau.abs(), low[:, None]), high[:, None])
    intra = torch.exp(n * ((magnitude - low[:, None]) / (high - low)[:, None]) ** 2)
    balance = intra * torch.tanh(tau * tau.sum(dim=0))
    shares = []
    for row in balance:
        sorted_row = row.sort().values
        least = sorted_row[min(int(size * (1 - density)), size - 1)]
        shares.append((row.clamp(min=least) - least) / (sorted_row[-1] - least))
    share = torch.stack(shares)
    expected = (share * tau.sign() * magnitude).sum(dim=0) / share.sum(dim=0).clamp(min=1e-12)
    found = delta_of(problem, density=density, scale=1.3)
    torch.testing.assert_close(found.double(), 1.3 * expected, rtol=1e-4, atol=1e-5)


def test_one_checkpoint_without_spread_is_finite() -> None:
    problem: Any = toy_problem(n=1, tasks=1)
    problem.vectors.matrix.fill_(0.25)
    assert delta_of(problem).isfinite().all()
