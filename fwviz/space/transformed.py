"""Task vectors that are changed whenever they are read, so that no second copy of them is ever held."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fwviz.space.blocks import Blocks, Piece
from fwviz.space.parallel import in_parallel
from fwviz.space.sparsify import elect_sign, kept_above, trim_rows
from fwviz.space.vectors import Meter, _Scratch, _TaskVectors
from fwviz.types import TaskVectors

# Changes the block (len(rows), stop − start) of task vectors ``rows`` in place: block, rows, start, stop.
Change = Callable[[Tensor, Sequence[int], int, int], None]


class TransformedTaskVectors(_TaskVectors):
    """τ̂ᵢ = change(τᵢ), coordinate by coordinate, over another storage. ``bytes_read`` is that of the storage."""

    def __init__(self, source: TaskVectors, change: Change, rows: Sequence[int] | None = None) -> None:
        """``rows`` of the source take part, all if None; ``change`` is always told rows of the source."""
        self._source, self._change = source, change
        self._rows = tuple(range(source.n)) if rows is None else tuple(rows)
        super().__init__(source.layout, [source.names[i] for i in self._rows], source.base, Meter())

    @property
    def bytes_read(self) -> int:
        return self._source.bytes_read

    def subset(self, indices: Sequence[int]) -> TransformedTaskVectors:
        """The same vectors restricted to some checkpoints, in the order given."""
        return TransformedTaskVectors(self._source, self._change, [self._rows[i] for i in indices])

    def _load(self, rows: Sequence[int], start: int, stop: int, scratch: _Scratch, weights: bool) -> Tensor:
        own = [self._rows[row] for row in rows]
        block = self._source.block(start, stop, own)
        self._change(block, own, start, stop)
        return block.add_(self.base[start:stop]) if weights else block


def masked(vectors: TaskVectors, mask: Tensor) -> TransformedTaskVectors:
    """τ̂ᵢ = mask ⊙ τᵢ with one mask (P,) for all, which is read at every use."""

    def change(block: Tensor, rows: Sequence[int], start: int, stop: int) -> None:
        block.mul_(mask[start:stop])

    return TransformedTaskVectors(vectors, change)


def stretched(vectors: TaskVectors, factor: float) -> TransformedTaskVectors:
    """τ̂ᵢ = factor·τᵢ."""

    def change(block: Tensor, rows: Sequence[int], start: int, stop: int) -> None:
        block.mul_(factor)

    return TransformedTaskVectors(vectors, change)


def elected(vectors: TaskVectors, density: float) -> TransformedTaskVectors:
    """What TIES keeps of each task vector: its largest entries, and of these the ones with the elected sign.

    τ̂ᵢ,p = τᵢ,p where |τᵢ,p| is among the ⌊density·P⌋ + 1 largest of τᵢ and sgn τᵢ,p = γ_p, else 0. γ is the sign of
    the sum of the trimmed vectors, where that is 0 the sign of most coordinates. Yadav et al. (2023), steps 1 and 2,
    with the conventions of the released code.

    Holds one threshold per checkpoint and one byte per coordinate, whatever n is.
    """
    blocks = Blocks(vectors)
    bounds = (0, vectors.layout.size)
    limits = blocks.order_statistics(bounds, lambda size: [kept_above(size, density, "released")])[:, 0, 0]
    signs = torch.empty(vectors.layout.size, dtype=torch.int8, device=vectors.base.device)

    def vote(piece: Piece) -> None:
        signs[piece.start : piece.stop] = elect_sign(trim_rows(blocks.load(piece.start, piece.stop), limits))

    in_parallel(vote, blocks.pieces(bounds), signs.device)
    signs[signs == 0] = signs.sum(dtype=torch.int64).sign().to(torch.int8)

    def change(block: Tensor, rows: Sequence[int], start: int, stop: int) -> None:
        trim_rows(block, limits[list(rows)])
        sign = signs[start:stop].to(block.dtype)
        block.mul_(sign).clamp_(min=0.0).mul_(sign)

    return TransformedTaskVectors(vectors, change)
