"""TSV-M: keep the leading singular vectors of each task vector and make those of all tasks orthogonal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.methods import _scale
from fwviz.methods._filter import high_pass_setting, high_passed
from fwviz.registry import merge_method
from fwviz.space.blocks import Blocks
from fwviz.space.subspace import polar, truncated_svd
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """Settings of TSV-M; the defaults are those of the released code."""

    high_pass: float = high_pass_setting()
    scale: float = _scale.scale_setting(1.0, "Factor on the merged task vector (α of the paper).")
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(2.0)


@merge_method(
    "TSV-M",
    Settings,
    data="none",
    paper="Task singular vectors: reducing task interference in model merging",
    reference="Gargiulo et al., CVPR 2025, arXiv:2412.00081",
)
def tsv_m(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Per weight matrix θ = θ₀ + scale·polar(U)·S·polar(Vᵀ), for other tensors θ = θ₀ + scale·mean of τᵢ.

    U = [U₁ … U_n], S, Vᵀ hold the ⌊r/n⌋ (one at least) leading singular triplets of each τᵢ, r the shorter side of the
    matrix; polar(U) is the nearest matrix with orthonormal columns. Triplets that are rounding only are left out.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with the delta
    (P,), before it one for each scale tried. Reads one checkpoint's tensor at a time.
    Reference: Gargiulo et al. (2025), arXiv:2412.00081, alg. 1, and the code released with it.
    """
    layout = problem.vectors.layout
    blocks = Blocks(problem.vectors, high_passed(layout, settings.high_pass))
    delta = blocks.per_tensor(lambda tensor: _merged(blocks, tensor))
    matrices = sum(len(shape) == 2 for shape in layout.shapes)
    note = f"orthogonal singular vectors of {matrices} matrices, the mean of the other tensors"
    yield from _scale.scaled_delta(problem, settings, delta, note)


def _merged(blocks: Blocks, tensor: int) -> Tensor:
    """δ of one tensor, flat."""
    shape = blocks.layout.shapes[tensor]
    if len(shape) != 2:
        return blocks.load_tensor(tensor).mean(dim=0)
    share = max(min(shape) // blocks.n, 1)
    parts = [truncated_svd(blocks.load_tensor(tensor, [i])[0].view(shape), share) for i in range(blocks.n)]
    left, values, right = (torch.cat([part[k] for part in parts], dim=d) for k, d in ((0, 1), (1, 0), (2, 0)))
    return ((polar(left) * values) @ polar(right)).flatten()
