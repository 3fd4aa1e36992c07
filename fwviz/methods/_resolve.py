"""What TIES, DARE and DELLA share: after the transform elect a sign per coordinate and merge what has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fwviz.space.blocks import Blocks, Piece
from fwviz.space.sparsify import cancelled, disjoint_merge, elect_sign

ZERO_SIGNS = ("majority", "plus")
ZERO_SIGN_HELP = (
    "Sign of a coordinate whose entries cancel out exactly: that of most coordinates, as in the released code of TIES, "
    "or plus, as in mergekit."
)
MERGES = ("mean", "sum")
MERGE_HELP = "Of the entries that have the elected sign take the mean or the sum."

# Changes a block (n, C) in place and gives it back; the same for the same piece every time.
Transform = Callable[[Tensor, Piece], Tensor]


def resolved(blocks: Blocks, transform: Transform, pieces: Sequence[Piece], merge: str, zero_sign: str) -> Tensor:
    """δ (P,): per coordinate the mean or sum of the transformed entries whose sign is γ_p = sgn(Σᵢ τ̂ᵢ,p).

    Where the sum is 0 although there are entries, γ_p is +1 or sgn(Σ_p γ_p). The latter is known after a pass only, so
    the few pieces that need it are done again.
    """

    def settled(block: Tensor, piece: Piece, zero: float) -> Tensor:
        kept = transform(block, piece)
        sign = elect_sign(kept)
        return disjoint_merge(kept, torch.where(sign == 0, zero, sign), merge)

    if zero_sign == "plus":
        return blocks.merge(lambda block, piece: settled(block, piece, 1.0), pieces)

    votes: list[float] = []
    undecided: list[Piece] = []

    def work(block: Tensor, piece: Piece) -> Tensor:
        kept = transform(block, piece)
        sign = elect_sign(kept)
        votes.append(float(sign.sum()))
        if cancelled(kept, sign):
            undecided.append(piece)
        return disjoint_merge(kept, sign, merge)

    delta = blocks.merge(work, pieces)
    majority = float((sum(votes) > 0) - (sum(votes) < 0))
    if majority:
        blocks.merge_into(delta, lambda block, piece: settled(block, piece, majority), undecided)
    return delta
