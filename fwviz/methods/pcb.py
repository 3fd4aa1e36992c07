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
        return [int(size * CLAMPED), max(int(size * (1 - CLAMPED) - 1), 0)]

    low, high = blocks.order_statistics(bounds, ends)[:, 0].to(device).split(1, dim=1)

    def balance(block: Tensor) -> Tensor:
        total = block[0].clone()
        for row in block[1:]:  # in this order, so that a coordinate's balance has the same bits wherever it is cut
            total += row
        share = _unit(block.abs().clamp_(low, high), low, high)
        return share.square_().mul_(blocks.n).exp_().mul_((block * total).tanh_())

    def best(size: int) -> list[int]:
        return [min(int(size * (1 - settings.density)), size - 1), size - 1]

    least, most = blocks.order_statistics(bounds, best, balance)[:, 0].to(device).split(1, dim=1)

    def work(block: Tensor, piece: Piece) -> Tensor:
        shares = _unit(balance(block).clamp_(min=least), least, most)
        clamped = block.abs().clamp_(low, high).mul_(block.sign())
        return clamped.mul_(shares).sum(dim=0).div_(shares.sum(dim=0).clamp_(min=1e-12))

    delta = blocks.merge(work, blocks.pieces(bounds))
    note = f"balanced mean over the best {100 * settings.density:g} % of each task vector"
    yield from _scale.scaled_delta(problem, settings, delta, note)


def _unit(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(values − low) / (high − low) in place, 0 where there is no range."""
    width = high - low
    return values.sub_(low).div_(torch.where(width > 0, width, torch.inf))
