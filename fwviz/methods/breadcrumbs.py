"""Breadcrumbs: drop the largest and the smallest entries of each task vector, add up the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fwviz.methods import _scale
from fwviz.methods._filter import high_pass_setting, high_passed
from fwviz.registry import merge_method, setting
from fwviz.space.blocks import Blocks, Piece
from fwviz.space.sparsify import keep_between, sorted_columns
from fwviz.types import Problem, Step

SCOPES = ("row", "tensor")


@dataclass(frozen=True)
class Settings:
    """Settings of Breadcrumbs; the defaults are those of the paper."""

    density: float = setting(
        0.85,
        "Share of entries kept: the largest ones that are no outliers (β of the released code).",
        low=0.0,
        high=1.0,
    )
    outliers: float = setting(
        0.01, "Share of entries dropped as too large (γ of the released code).", low=0.0, high=1.0
    )
    mask_scope: str = setting(
        "row",
        "Rank entries along the last axis of each tensor, as the released code does, or over the whole tensor, as the "
        "paper's text and mergekit do.",
        choices=SCOPES,
    )
    high_pass: float = high_pass_setting()
    scale: float = _scale.scale_setting(0.3, "Factor on the sum of what is left (α of the paper).")
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(1.0)


@merge_method(
    "Breadcrumbs",
    Settings,
    data="none",
    paper="Model Breadcrumbs: scaling multi-task model merging with sparse masks",
    reference="Davari and Belilovsky, ECCV 2024, arXiv:2312.06795",
)
def breadcrumbs(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Masked sum: θ = θ₀ + scale·Σᵢ mᵢ ⊙ τᵢ.

    mᵢ drops in each row (or tensor) of C entries the ⌊outliers·C⌋ of largest magnitude, keeps the ⌊density·C⌋ next
    ones and drops the rest. Entries that equal the last one kept are kept, too.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with the delta
    (P,), before it one for each scale tried.
    Reference: Davari and Belilovsky (2024), arXiv:2312.06795, eq. 2–3, and the code released with it.
    """
    layout = problem.vectors.layout
    blocks = Blocks(problem.vectors, high_passed(layout, settings.high_pass))
    widths = [shape[-1] if shape else 1 for shape in layout.shapes]  # of the rows of each tensor

    def counts(size: int) -> tuple[int, int]:
        """Of ``size`` entries: how many are outliers, and how many are kept."""
        outliers = min(int(size * settings.outliers), size)
        return outliers, min(int(size * settings.density), size - outliers)

    def ranks(size: int) -> list[int]:
        """Of the smallest and the largest magnitude kept (of anything where none is)."""
        outliers, kept = counts(size)
        return [size - outliers - kept, size - outliers - 1] if kept else [0, 0]

    def masked_rows(block: Tensor, piece: Piece) -> Tensor:
        columns = widths[piece.group]
        if not counts(columns)[1]:
            return block.zero_()
        for tau in block:  # a row of the block is rows of a tensor
            rows = tau.view(-1, columns)
            low, high = sorted_columns(rows.abs(), ranks(columns))
            keep_between(rows, low, high)
        return block

    def masked_tensors(block: Tensor, piece: Piece) -> Tensor:
        first, last = layout.offsets[piece.group], layout.offsets[piece.group + 1]
        if not counts(last - first)[1]:
            return block.zero_()
        return keep_between(block, limits[:, piece.group, 0:1], limits[:, piece.group, 1:2])

    if settings.mask_scope == "row":
        masked, units = masked_rows, widths
    else:
        masked, units = masked_tensors, None
        limits = blocks.order_statistics(layout.offsets, ranks).to(problem.vectors.base.device)
    pieces = blocks.pieces(layout.offsets, units)
    delta = blocks.merge(lambda block, piece: masked(block, piece).sum(dim=0), pieces)
    note = (
        f"per {settings.mask_scope} the largest {100 * settings.outliers:g} % dropped and the next "
        f"{100 * settings.density:g} % kept"
    )
    yield from _scale.scaled_delta(problem, settings, delta, note)
