"""Keeping only part of a task vector."""

from __future__ import annotations

import torch
from torch import Tensor


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the entries of largest magnitude and zero the rest, in place and over the whole vector.

    The threshold is the (P − ⌊density·P⌋)-th smallest magnitude and is itself kept, so ⌊density·P⌋ + 1 entries stay:
    the convention of the released TIES code (Yadav et al., 2023).

    Args: delta (P,), density the share kept, in [0, 1].
    """
    rank = max(delta.numel() - int(delta.numel() * density), 1)
    magnitude = delta.abs()
    threshold = torch.kthvalue(magnitude, rank).values
    return delta.masked_fill_(magnitude < threshold, 0.0)
