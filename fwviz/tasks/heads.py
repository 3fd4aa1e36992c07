"""Frozen classification heads: what turns features into logits, the same for every checkpoint of a pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.family import Backbone, Classifier
from fwviz.types import FwvizError, LossName


class TaskHead(Protocol):
    """What turns the features of one task into answers: logits = inner(features) · weightᵀ, weight (C, E)."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def classes(self) -> int: ...

    @property
    def is_number(self) -> bool:
        """Whether it predicts a number instead of a class."""
        ...

    def inner(self, features: Tensor) -> Tensor:
        """Features (B, D) → what the last, linear layer reads (B, E)."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, D) → logits (B, C)."""
        ...

    def loss_sum(self, features: Tensor, labels: Tensor | None, loss: LossName) -> Tensor:
        """Sum over the batch, in nats: cross-entropy −ln p_y, or entropy −Σ_c p_c ln p_c, which needs no labels."""
        ...

    def answers(self, logits: Tensor) -> Tensor:
        """Logits (B, C) → the class, or the number, each sample is given: (B,)."""
        ...


@dataclass(frozen=True)
class Head:
    """The head of one task: logits = features · weightᵀ, weight (C, D) = exp(logit_scale) · unit class embeddings."""

    task: str
    weight: Tensor

    @property
    def classes(self) -> int:
        return self.weight.shape[0]

    @property
    def is_number(self) -> bool:
        return False

    def inner(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Unit features (B, D) → logits (B, C)."""
        return features @ self.weight.T

    def loss_sum(self, features: Tensor, labels: Tensor | None, loss: LossName) -> Tensor:
        """Sum over the batch, in nats: cross-entropy −ln p_y, or entropy −Σ_c p_c ln p_c, which needs no labels."""
        return classification_loss(self.logits(features), labels, loss)

    def answers(self, logits: Tensor) -> Tensor:
        """The likeliest class of each sample: (B, C) → (B,)."""
        return logits.argmax(dim=-1)


@dataclass(frozen=True)
class OwnHead:
    """The classifier a task's own checkpoint brought along; with one output it predicts a number."""

    task: str
    classifier: Classifier

    @property
    def classes(self) -> int:
        return self.classifier.bias.shape[0]

    @property
    def is_number(self) -> bool:
        return self.classes == 1

    @property
    def weight(self) -> Tensor:
        """(C, W + 1): the last layer, its bias as one more column."""
        return torch.cat([self.classifier.weight, self.classifier.bias[:, None]], dim=1)

    def inner(self, features: Tensor) -> Tensor:
        """What the last layer reads, and a one for its bias: (B, W) → (B, W + 1)."""
        inner = self.classifier.inner(features)
        return torch.cat([inner, inner.new_ones(len(inner), 1)], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, D) → logits (B, C), or numbers (B, 1)."""
        return self.classifier.logits(features)

    def loss_sum(self, features: Tensor, labels: Tensor | None, loss: LossName) -> Tensor:
        """As a head of texts has it; of numbers Σ (y − f)², which needs labels."""
        logits = self.logits(features)
        if not self.is_number:
            return classification_loss(logits, labels, loss)
        if loss == "entropy":
            raise FwvizError(
                f"task {self.task!r} is answered by a number, which has no entropy: leave it out or use the labels."
            )
        if labels is None:
            raise ValueError("cross_entropy needs labels")
        return (logits[:, 0] - labels.to(logits)).square().sum()

    def answers(self, logits: Tensor) -> Tensor:
        """The likeliest class, or the number: (B, C) → (B,)."""
        return logits[:, 0] if self.is_number else logits.argmax(dim=-1)


def classification_loss(logits: Tensor, labels: Tensor | None, loss: LossName) -> Tensor:
    """Sum over the batch, in nats, of −ln p_y or of the entropy −Σ_c p_c ln p_c: (B, C), (B,) → ()."""
    log_p = F.log_softmax(logits, dim=-1)
    if loss == "entropy":
        return -(log_p.exp() * log_p).sum()
    if labels is None:
        raise ValueError("cross_entropy needs labels")
    return F.nll_loss(log_p, labels, reduction="sum")


def scaled_heads(backbone: Backbone, heads: Mapping[str, Tensor | Classifier]) -> dict[str, TaskHead]:
    """Task → head on the backbone's device: of unit class embeddings (C, D), by its scale, or of a classifier."""
    found: dict[str, TaskHead] = {}
    factor = math.exp(backbone.logit_scale)
    for task, head in heads.items():
        weight = head.dense_weight if isinstance(head, Classifier) else head
        if weight.dim() != 2 or weight.shape[1] != backbone.dimension:
            raise FwvizError(
                f"the head of {task!r} has shape {tuple(weight.shape)}, but must be (C, {backbone.dimension})."
            )
        if isinstance(head, Classifier):
            found[task] = OwnHead(task, head.to(backbone.device))
        else:
            found[task] = Head(task, head.to(backbone.device).mul(factor))
    return found
