"""FREE-Merging's high-pass filter as a transform in front of other methods (its Table 8)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fwviz.registry import setting
from fwviz.space.blocks import TensorTransform
from fwviz.space.spectrum import high_pass
from fwviz.types import ParamLayout


def high_pass_setting() -> Any:
    """The field ``high_pass``."""
    return setting(
        0.0,
        "Keep only spatial frequencies of each weight matrix from this share of the highest one on, before anything "
        "else (FREE-Merging, Table 8); 0 filters nothing.",
        low=0.0,
        high=1.0,
    )


def high_passed(layout: ParamLayout, cutoff: float) -> TensorTransform | None:
    """G(τᵢ) for every matrix of every task vector, None at cutoff 0. Vectors and convolutions stay as they are."""
    if cutoff <= 0:
        return None

    def transform(block: Tensor, tensor: int) -> None:
        shape = layout.shapes[tensor]
        if len(shape) == 2:
            for row in block:  # one at a time: a spectrum is as large as its matrix
                row.copy_(high_pass(row.view(shape), cutoff).view(-1))

    return transform
