"""DARE and DELLA: what is dropped at random, how it is rescaled, and that a mask belongs to its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.methods import _drop
from fwviz.methods.dare import Settings as DareSettings
from fwviz.methods.dare import dare
from fwviz.methods.della import Settings as DellaSettings
from fwviz.methods.della import della
from fwviz.space import blocks as blocks_module
from fwviz.types import Problem
from tests.toy import toy_problem, toy_vectors


def dare_delta(problem: Problem, **settings: Any) -> Tensor:
    (step,) = list(dare(problem, DareSettings(**settings)))
    assert step.delta is not None
    return step.delta


def della_delta(problem: Problem, **settings: Any) -> Tensor:
    (step,) = list(della(problem, DellaSettings(**settings)))
    assert step.delta is not None
    return step.delta


def test_one_checkpoint_is_dropped_and_rescaled() -> None:
    problem = toy_problem(n=1, tasks=1)
    tau = problem.vectors.vector(0)
    found = dare_delta(problem, drop_rate=0.6, scale=0.5)
    kept = found != 0
    torch.testing.assert_close(found[kept], 0.5 * tau[kept] / 0.4)
    assert 0.2 < float(kept.float().mean()) < 0.6


def test_the_mean_over_seeds_is_task_arithmetic() -> None:
    problem: Any = toy_problem(n=3)
    total = sum(dare_delta(replace(problem, seed=seed), drop_rate=0.5, scale=1.0) for seed in range(400))
    expected = problem.vectors.matrix.sum(dim=0)
    noise = problem.vectors.matrix.square().sum(dim=0).sqrt() / 20  # a standard error: √(p/(1 − p)·Σ τ² / 400)
    assert float(((total / 400 - expected) / noise).abs().max()) < 5


def test_dare_with_ties_merges_what_has_the_sign_of_the_sum() -> None:
    problem: Any = toy_problem()
    parts = [
        dare_delta(replace(problem, vectors=problem.vectors.subset([i])), drop_rate=0.3, scale=1.0)
        for i in range(problem.vectors.n)
    ]
    dropped = torch.stack(parts)
    sign = dropped.sum(dim=0).sign()
    agreeing = torch.where(dropped * sign > 0, dropped, 0.0)
    found = dare_delta(problem, drop_rate=0.3, combine="ties", scale=1.0)
    torch.testing.assert_close(found, agreeing.sum(dim=0))
    mean = dare_delta(problem, drop_rate=0.3, combine="ties", merge="mean", scale=1.0)
    torch.testing.assert_close(mean, agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1))


@pytest.mark.parametrize("delta", [dare_delta, della_delta])
def test_a_mask_depends_on_seed_and_name_only(delta: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the other checkpoints, nor on how the coordinates are cut; another seed gives another mask."""
    problem: Any = toy_problem()
    monkeypatch.setattr(_drop, "UNIT", 8)
    for module in ("fwviz.methods.dare.UNIT", "fwviz.methods.della.UNIT"):
        monkeypatch.setattr(module, 8)
    alone = [delta(replace(problem, vectors=problem.vectors.subset([i])), scale=1.0) for i in (0, 3)]
    monkeypatch.setattr(blocks_module, "_CELLS", 30)
    cut = [delta(replace(problem, vectors=problem.vectors.subset([i])), scale=1.0) for i in (0, 3)]
    for a, b in zip(alone, cut, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(alone[0] != 0, alone[1] != 0)
    other = delta(replace(problem, seed=9, vectors=problem.vectors.subset([0])), scale=1.0)
    assert not torch.equal(alone[0] != 0, other != 0)


def test_draws_are_uniform_and_of_all_coordinates_different() -> None:
    problem = replace(toy_problem(), vectors=toy_vectors(n=2))
    draws = torch.cat(
        [_drop.uniform(problem, blocks_module.Piece(a, a + 4096, 0), 1024) for a in range(0, 65536, 4096)], dim=1
    )
    assert draws.unique().numel() > 0.98 * draws.numel()
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float((draws < 0.1).float().mean()) == pytest.approx(0.1, abs=0.005)


def test_della_keeps_large_entries_more_often_and_rescales_by_their_probability() -> None:
    problem: Any = toy_problem(n=1, tasks=1)
    tau = problem.vectors.vector(0)
    kept = torch.zeros_like(tau)
    for seed in range(300):
        found = della_delta(replace(problem, seed=seed), density=0.5, epsilon=0.4, scale=1.0)
        kept += found != 0
        # Every entry that stays is divided by its own probability, which the ranks in its row give.
        for name in problem.vectors.layout.names:
            part, row = problem.vectors.layout.view(found, name), problem.vectors.layout.view(tau, name)
            part, row = (x.reshape(x.shape[0] if x.dim() > 1 else 1, -1) for x in (part, row))
            ranks = row.abs().argsort(dim=1).argsort(dim=1)
            chance = 0.1 + 0.8 * ranks / (row.shape[1] - 1)
            stays = part != 0
            torch.testing.assert_close(part[stays], (row / chance)[stays])
    share = kept / 300
    layout = problem.vectors.layout
    for name in layout.names:
        row = layout.view(tau, name)
        flat = row.reshape(row.shape[0] if row.dim() > 1 else 1, -1)
        often = layout.view(share, name).reshape(flat.shape)
        largest, smallest = flat.abs().argmax(dim=1), flat.abs().argmin(dim=1)
        assert float(often.gather(1, largest[:, None]).mean()) == pytest.approx(0.9, abs=0.06)
        assert float(often.gather(1, smallest[:, None]).mean()) == pytest.approx(0.1, abs=0.06)


def test_della_cuts_epsilon_to_probabilities() -> None:
    found = della_delta(toy_problem(), density=0.95, epsilon=0.5)
    assert found.isfinite().all()
