"""Routers: shares are shares, the trained one tells tasks apart, and the same seed trains the same one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.tasks.router import OracleRouter, RandomRouter, TrainedRouter, train_router


def clusters(count: int = 40, seed: int = 0, spread: float = 0.4) -> dict[str, Tensor]:
    """Unit features of three tasks around three directions."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(99)), dim=-1)
    return {
        task: F.normalize(centre + spread * torch.randn(count, 24, generator=generator) / 24**0.5, dim=-1)
        for task, centre in zip("abc", centres, strict=True)
    }


def train(choice: str = "hard", seed: int = 0) -> TrainedRouter:
    return train_router(clusters(), choice=choice, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_the_trained_router_tells_unseen_inputs_apart() -> None:
    router = train()
    for k, (task, features) in enumerate(clusters(seed=1).items()):
        shares = router.shares(features, task)
        assert (shares[:, k] == 1).float().mean() > 0.95
        assert torch.equal(shares.sum(1), torch.ones(len(features)))


def test_the_trained_router_is_not_told_the_task() -> None:
    router = train()
    features = clusters(seed=1)["b"]
    assert torch.equal(router.shares(features, "a"), router.shares(features, "b"))


def test_soft_shares_follow_the_two_most_likely() -> None:
    router = train("soft")
    mixed = F.normalize(clusters(seed=1)["a"] + clusters(seed=2)["b"], dim=-1)
    p, shares = router.probabilities(mixed), router.shares(mixed, "a")
    assert torch.allclose(shares.sum(1), torch.ones(len(mixed)))
    assert ((shares * 8).round() == shares * 8).all()
    assert (shares > 0).sum(1).max() == 2
    top = p.topk(2).values.sum(1, keepdim=True)
    kept = shares > 0
    assert ((shares - p / top).abs()[kept] <= 1 / 16 + 1e-6).all()
    assert (shares.gather(1, p.argmax(1, keepdim=True)) >= 0.5).all()


def test_the_same_seed_trains_the_same_router() -> None:
    a, b, c = train(seed=1), train(seed=1), train(seed=2)
    assert all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))
    assert not torch.equal(a.first, c.first)
    assert not a.first.requires_grad


def test_tasks_count_alike_however_many_samples_they_have() -> None:
    features = clusters(spread=2.5)
    lopsided = {"a": features["a"], "b": features["b"][:4], "c": features["c"][:4]}
    router = train_router(lopsided, choice="hard", generator=torch.Generator().manual_seed(0))
    drawn = torch.cat(list(clusters(seed=5, spread=2.5).values()))
    assert router.shares(drawn, "a").mean(0).min() > 0.1


def test_oracle_and_random() -> None:
    features = torch.zeros(600, 4)
    oracle = OracleRouter(("a", "b", "c"))
    assert torch.equal(oracle.shares(features, "b"), F.one_hot(torch.ones(600, dtype=torch.int64), 3).float())
    random = RandomRouter(("a", "b", "c"), seed=3)
    shares = random.shares(features, "b")
    assert torch.equal(shares, RandomRouter(("a", "b", "c"), seed=3).shares(features, "b"))
    assert not torch.equal(shares, random.shares(features, "a"))
    assert (shares.mean(0) - 1 / 3).abs().max() < 0.07


@pytest.mark.parametrize("router", [OracleRouter(("a", "b", "c")), RandomRouter(("a", "b", "c"), 7), train("soft")])
def test_routers_come_back_from_their_tensors(router: OracleRouter | RandomRouter | TrainedRouter) -> None:
    again = type(router).from_tensors(router.tensors(), router.tasks)
    features = clusters(seed=4)["c"]
    assert torch.equal(again.shares(features, "c"), router.shares(features, "c"))
