"""Routers: which expert answers which input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Choice = Literal["hard", "soft"]
CHOICES: tuple[Choice, ...] = ("hard", "soft")

_HIDDEN = 64
_UPDATES = 300
_RATE = 1e-2
_DECAY = 1.0  # strong: there are few samples for so many weights
_FIRST = 8.0  # unit features have small entries; this brings their projections to order one


@dataclass(frozen=True)
class OracleRouter:
    """Is told the task: every input gets the expert of the task whose head answers."""

    kind: ClassVar[str] = "oracle"
    reads_features: ClassVar[bool] = False

    tasks: tuple[str, ...]

    def shares(self, features: Tensor, task: str) -> Tensor:
        return F.one_hot(torch.full((features.shape[0],), self.tasks.index(task)), len(self.tasks)).float()

    def tensors(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], tasks: Sequence[str]) -> OracleRouter:
        return cls(tuple(tasks))


@dataclass(frozen=True)
class RandomRouter:
    """Draws one expert per input, all alike: what is left when the router knows nothing."""

    kind: ClassVar[str] = "random"
    reads_features: ClassVar[bool] = False

    tasks: tuple[str, ...]
    seed: int

    def shares(self, features: Tensor, task: str) -> Tensor:
        """The draw depends on the seed, the task and the number of inputs, not on what they look like."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + self.tasks.index(task))
        drawn = torch.randint(len(self.tasks), (features.shape[0],), generator=generator)
        return F.one_hot(drawn, len(self.tasks)).float()

    def tensors(self) -> dict[str, Tensor]:
        return {"seed": torch.tensor([self.seed])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], tasks: Sequence[str]) -> RandomRouter:
        return cls(tuple(tasks), int(tensors["seed"]))


@dataclass(frozen=True)
class TrainedRouter:
    """A small perceptron on the backbone's features: p = softmax(second·relu(first·f + bias₁) + bias₂).

    ``hard`` gives each input the expert of its most likely task. ``soft`` mixes the two most likely ones, in shares
    proportional to p and rounded to eighths, so that inputs with equal shares can be encoded together.
    """

    kind: ClassVar[str] = "trained"
    reads_features: ClassVar[bool] = True

    tasks: tuple[str, ...]
    choice: Choice
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    def probabilities(self, features: Tensor) -> Tensor:
        """Unit features (N, D) → (N, K) on the CPU."""
        return F.softmax(self._logits(features.to("cpu", torch.float32)), dim=-1)

    def shares(self, features: Tensor, task: str) -> Tensor:
        p = self.probabilities(features)
        if self.choice == "hard" or len(self.tasks) == 1:
            return F.one_hot(p.argmax(dim=-1), len(self.tasks)).float()
        top, where = p.topk(2, dim=-1)
        first = (top[:, 0] / top.sum(dim=-1)).mul(8).round().div(8)
        return torch.zeros_like(p).scatter_(1, where, torch.stack([first, 1 - first], dim=1))

    def _logits(self, features: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(features, self.first, self.first_bias)), self.second, self.second_bias)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "first": self.first,
            "first_bias": self.first_bias,
            "second": self.second,
            "second_bias": self.second_bias,
            "soft": torch.tensor([self.choice == "soft"]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], tasks: Sequence[str]) -> TrainedRouter:
        choice: Choice = "soft" if bool(tensors["soft"]) else "hard"
        layers = [tensors[name] for name in ("first", "first_bias", "second", "second_bias")]
        return cls(tuple(tasks), choice, *layers)


def train_router(features: Mapping[str, Tensor], *, choice: Choice, generator: torch.Generator) -> TrainedRouter:
    """Learn to tell from the backbone's features which task an input belongs to.

    A perceptron with 64 hidden units minimises the cross-entropy over all inputs, every task with equal weight, by 300
    full-batch updates of AdamW: seconds on a CPU. No class label is used, only which task an input came from.

    Args: features task → unit features (N_task, D); a task without any is learnt from nothing, so it is never chosen.
    """
    tasks = tuple(features)
    x = torch.cat([part.to("cpu", torch.float32) for part in features.values()])
    counts = [part.shape[0] for part in features.values()]
    y = torch.repeat_interleave(torch.arange(len(tasks)), torch.tensor(counts))
    weight = torch.tensor([1.0 / count if count else 0.0 for count in counts])
    width = x.shape[1]
    router = TrainedRouter(
        tasks,
        choice,
        torch.randn(_HIDDEN, width, generator=generator).mul_(_FIRST / width**0.5),
        torch.zeros(_HIDDEN),
        torch.zeros(len(tasks), _HIDDEN),
        torch.zeros(len(tasks)),
    )
    layers = [router.first, router.first_bias, router.second, router.second_bias]
    if x.shape[0]:
        with torch.enable_grad():
            for layer in layers:
                layer.requires_grad_(True)
            optimiser = torch.optim.AdamW(layers, lr=_RATE, weight_decay=_DECAY)
            for _ in range(_UPDATES):
                optimiser.zero_grad()
                F.cross_entropy(router._logits(x), y, weight=weight).backward()
                optimiser.step()
    for layer in layers:
        layer.requires_grad_(False)
    return router
