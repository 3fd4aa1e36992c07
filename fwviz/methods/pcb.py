"""PCB: each entry counts by how much it matters inside its task vector and how well the others agree with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.methods import _scale
from fwviz.registry import merge_method, setting
from fwviz.space.blocks import Blocks, Piece
from fwviz.types import Problem, Step

CLAMPED = 1e-4  # share of magnitudes at either end that is clamped, as released
_SHORT = 0.1  # up to here the first three terms of tanh have all digits of float32


@dataclass(frozen=True)
class Settings:
    """Settings of PCB; the defaults are those of the released code."""

    density: float = setting(0.1, "Share of each task vector that takes part: the best balanced.", low=0.001, high=1.0)
    scale: float = _scale.scale_setting(1.2, "Factor on the merged task vector.")
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(2.0)


@merge_method(
    "PCB-Merging",
    Settings,
    data="none",
    paper="Parameter competition balancing for model merging",
    reference="Du et al., NeurIPS 2024, arXiv:2410.02396",
)
def pcb(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Balanced mean: θ = θ₀ + scale·Σᵢ sᵢ ⊙ τ̃ᵢ / Σᵢ sᵢ.

    τ̃ᵢ is τᵢ with |τᵢ| clamped at its 1e-4 quantiles from below and above. The balance of its entries is
    βᵢ = exp(n·m(|τ̃ᵢ|)²)·tanh(τᵢ·Σⱼ τⱼ), m mapping a vector's smallest to 0 and largest to 1: intra- times inter-task.
    sᵢ = m(max(βᵢ, q)) with q the balance of the entry below the best ``density``, so all below count nothing.

    The paper writes both parts as softmax functions; this is the code released with it.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with the delta
    (P,), before it one for each scale tried. Reads every checkpoint three times; memory beyond δ does not depend on n.
    Reference: Du et al. (2024), arXiv:2410.02396, eq. 1–5, and the code released with it.
    """
    blocks = Blocks(problem.vectors)
    device = problem.vectors.base.device
    bounds = (0, problem.vectors.layout.size)

    def ends(size: int) -> list[int]:
        return [int(size * CLAMPED), max(int(size * (1 - CLAMPED) - 1), 0), size - 1]

    low, high, longest = blocks.order_statistics(bounds, ends)[:, 0].split(1, dim=1)
    # A bound for all coordinates, so that a coordinate's balance has the same bits wherever it is cut.
    tanh = _short_tanh if float(longest.max() * longest.sum()) <= _SHORT else torch.Tensor.tanh_
    limits = list(zip(low.flatten().tolist(), high.flatten().tolist(), strict=True))
    low, factor = low.to(device), _reciprocal(low, high).mul_(blocks.n**0.5).to(device)

    def clamped(block: Tensor) -> Tensor:
        sizes = block.abs()
        for row, (least, most) in zip(sizes, limits, strict=True):  # by numbers: with tensors it takes 7 times as long
            row.clamp_(least, most)
        return sizes

    def balance(block: Tensor) -> Tensor:
        total = block[0].clone()
        for row in block[1:]:  # in this order, for the same bits
            total += row
        share = clamped(block).sub_(low).mul_(factor).square_()
        # e⁻ⁿ of every balance: it falls out of the shares, and without it float32 overflows beyond 88 checkpoints.
        return share.sub_(blocks.n).exp_().mul_(tanh(block * total))

    def best(size: int) -> list[int]:
        return [min(int(size * (1 - settings.density)), size - 1), size - 1]

    least, most = blocks.order_statistics(bounds, best, balance)[:, 0].split(1, dim=1)
    counted = _reciprocal(least, most).to(device)
    least = least.to(device)

    def work(block: Tensor, piece: Piece) -> Tensor:
        shares = balance(block).sub_(least).mul_(counted).clamp_(min=0.0)
        return clamped(block).mul_(block.sign()).mul_(shares).sum(dim=0).div_(shares.sum(dim=0).clamp_(min=1e-12))

    delta = blocks.merge(work, blocks.pieces(bounds))
    note = f"balanced mean over the best {100 * settings.density:g} % of each task vector"
    yield from _scale.scaled_delta(problem, settings, delta, note)


def _reciprocal(low: Tensor, high: Tensor) -> Tensor:
    """1 / (high − low), 0 where there is no range, or none that float32 could divide by."""
    width = high - low
    return torch.where(width > torch.finfo(torch.float32).tiny, 1 / width, 0.0)


def _short_tanh(x: Tensor) -> Tensor:
    """tanh x up to rounding where |x| ≤ 0.1, in a sixth of the time: x·(1 − x²/3 + 2x⁴/15)."""
    square = x.square()
    return x.mul_(square.mul(2 / 15).sub_(1 / 3).mul_(square).add_(1.0))
