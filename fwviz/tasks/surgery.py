"""Feature maps: a small correction of the backbone's features, one per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SurgeryMap:
    """f ↦ f − up·relu(down·f), brought back to length 1; ``down`` (r, D), ``up`` (D, r)."""

    kind: ClassVar[str] = "surgery"

    down: Tensor
    up: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return F.normalize(corrected(features, self.down.to(features.device), self.up.to(features.device)), dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        return {"down": self.down, "up": self.up}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SurgeryMap:
        return cls(tensors["down"], tensors["up"])


def corrected(features: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """(N, D) → f − up·relu(down·f), not of unit length: what Representation Surgery's loss compares."""
    return features - F.linear(F.relu(F.linear(features, down)), up)
