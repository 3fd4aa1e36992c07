"""Frozen classification heads: what turns features into logits, the same for every checkpoint of a pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.family import Backbone
from fwviz.types import FwvizError, LossName


@dataclass(frozen=True)
class Head:
    """The head of one task: logits = features · weightᵀ, weight (C, D) = exp(logit_scale) · unit class embeddings."""

    task: str
    weight: Tensor

    @property
    def classes(self) -> int:
        return self.weight.shape[0]

    def logits(self, features: Tensor) -> Tensor:
        """Unit features (B, D) → logits (B, C)."""
        return features @ self.weight.T

    def loss_sum(self, features: Tensor, labels: Tensor | None, loss: LossName) -> Tensor:
        """Sum over the batch, in nats: cross-entropy −ln p_y, or entropy −Σ_c p_c ln p_c, which needs no labels."""
        log_p = F.log_softmax(self.logits(features), dim=-1)
        if loss == "entropy":
            return -(log_p.exp() * log_p).sum()
        if labels is None:
            raise ValueError("cross_entropy needs labels")
        return F.nll_loss(log_p, labels, reduction="sum")


def scaled_heads(backbone: Backbone, embeddings: Mapping[str, Tensor]) -> dict[str, Head]:
    """Task → head for unit class embeddings (C, D), with the backbone's scale and on its device."""
    for task, head in embeddings.items():
        if head.dim() != 2 or head.shape[1] != backbone.dimension:
            raise FwvizError(
                f"the head of {task!r} has shape {tuple(head.shape)}, but must be (C, {backbone.dimension})."
            )
    factor = math.exp(backbone.logit_scale)
    return {task: Head(task, head.to(backbone.device).mul(factor)) for task, head in embeddings.items()}
