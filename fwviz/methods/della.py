"""DELLA: drop entries at random, the small ones more often, rescale, elect a sign and merge what has it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fwviz.methods import _scale
from fwviz.methods._drop import UNIT, uniform
from fwviz.methods._resolve import MERGE_HELP, MERGES, ZERO_SIGN_HELP, ZERO_SIGNS, resolved
from fwviz.registry import merge_method, setting
from fwviz.space.blocks import Blocks, Piece
from fwviz.space.sparsify import ranked_drop
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """Settings of DELLA; the defaults are those of mergekit (ε) and of the released code (density, scale)."""

    density: float = setting(0.7, "Probability that an entry of middle rank is kept.", low=0.01, high=0.99)
    epsilon: float = setting(
        0.15,
        "The largest entry of a row is kept with probability density + ε, the smallest with density − ε (half the "
        "window size of the released code, which takes 0.07). Cut to what leaves both between 0 and 1.",
        low=0.0,
        high=0.5,
    )
    elect: bool = setting(True, "Elect a sign and merge what has it; otherwise add up everything.")
    merge: str = setting("mean", MERGE_HELP, choices=MERGES, applies={"elect": (True,)})
    zero_sign: str = setting("plus", ZERO_SIGN_HELP, choices=ZERO_SIGNS, applies={"elect": (True,)})
    scale: float = _scale.scale_setting(1.1, "Factor on the merged task vector; 1.1 as released.")
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(2.0)


@merge_method(
    "DELLA",
    Settings,
    data="none",
    paper="DELLA-Merging: reducing interference by magnitude-based sampling",
    reference="Deep et al., 2024, arXiv:2406.11617",
)
def della(problem: Problem, settings: Settings) -> Iterator[Step]:
    """MagPrune, elect, fuse: θ = θ₀ + scale·δ.

    In each row (the weights into one output; a vector is one row) the entry of rank r by magnitude, 0 the smallest of
    C, is kept with probability p_r = density − ε + 2ε·r/(C − 1) and divided by p_r; δ_p is the mean (or sum) of what
    has the elected sign γ_p = sgn(Σᵢ τ̂ᵢ,p). The mask of a checkpoint is fixed by the seed and its name.

    mergekit differs: it rescales each tensor as a whole so that its L1 norm stays.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with the delta
    (P,), before it one for each scale tried.
    Reference: Deep et al. (2024), arXiv:2406.11617, eq. 1–7, and the code released with it.
    """
    layout = problem.vectors.layout
    rows = [max(math.prod(shape) // shape[0], 1) if len(shape) > 1 else math.prod(shape) for shape in layout.shapes]
    units = [max(UNIT // row, 1) * row for row in rows]
    blocks = Blocks(problem.vectors)
    pieces = blocks.pieces(layout.offsets, units)
    epsilon = min(settings.epsilon, settings.density - 1e-3, 1 - 1e-3 - settings.density)

    def dropped(block: Tensor, piece: Piece) -> Tensor:
        columns = rows[piece.group]
        # A checkpoint at a time: its part of the block is rows of a matrix, and stays in cache.
        for i, tau in enumerate(block):
            draws = uniform(problem, piece, units[piece.group], [i])
            ranked_drop(tau.view(-1, columns), settings.density, epsilon, draws.view(-1, columns))
        return block

    if settings.elect:
        delta = resolved(blocks, dropped, pieces, settings.merge, settings.zero_sign)
    else:
        delta = blocks.merge(lambda block, piece: dropped(block, piece).sum(dim=0), pieces)
    note = f"entries kept with probability {settings.density - epsilon:.3g} to {settings.density + epsilon:.3g} by rank"
    yield from _scale.scaled_delta(problem, settings, delta, note)
