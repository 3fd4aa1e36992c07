"""Walking n task vectors chunk by chunk: what every merge needs that looks at all checkpoints at one coordinate.

A merge that is not a linear combination asks, coordinate by coordinate, what all checkpoints have there. Here the
coordinates are cut into pieces whose n rows stay in cache; worker threads take whole pieces and write their part of the
one result (P,). Memory beyond the result is a few blocks per thread, whatever n is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from fwviz.space.parallel import in_parallel
from fwviz.space.selection import order_statistics
from fwviz.types import TaskVectors

_CELLS = 1 << 18  # elements of one piece over all rows
_KEPT_BYTES = 31 << 20  # the largest block that moves glibc's thresholds has 32 MiB

# Changes the block (n, C) of one whole tensor in place, given the tensor's index in the layout.
TensorTransform = Callable[[Tensor, int], None]
# Block (n, C) → keys (n, C); it may work in place.
Key = Callable[[Tensor], Tensor]
# Number of columns → the ranks wanted of them.
Ranks = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Piece:
    """Coordinates [start, stop) that lie in one group."""

    start: int
    stop: int
    group: int


class Blocks:
    """n task vectors as blocks (n, C) of the same C coordinates, each a new float32 tensor that may be changed.

    ``transform`` is applied to every tensor as a whole before it is handed out, a filter in the frequency domain for
    instance; pieces are then whole tensors, because nothing less can be transformed.
    """

    def __init__(self, vectors: TaskVectors, transform: TensorTransform | None = None) -> None:
        _keep_freed_pages()
        self.vectors = vectors
        self.layout = vectors.layout
        self.n = vectors.n
        self._transform = transform
        self._tensor_at = {start: j for j, start in enumerate(self.layout.offsets[:-1])}

    def load(self, start: int, stop: int, rows: Sequence[int] | None = None) -> Tensor:
        """The block of [start, stop), which with a transform must be one whole tensor; of some checkpoints if given."""
        block = self.vectors.block(start, stop, rows)
        if self._transform is not None:
            self._transform(block, self._tensor_at[start])
        return block

    def load_tensor(self, tensor: int, rows: Sequence[int] | None = None) -> Tensor:
        """The block of one tensor."""
        return self.load(self.layout.offsets[tensor], self.layout.offsets[tensor + 1], rows)

    def pieces(self, bounds: Sequence[int], unit: Sequence[int] | None = None) -> list[Piece]:
        """Cut [0, P) into pieces that end where a group ends; ``unit[g]`` columns of group g are never separated."""
        if self._transform is not None:
            ends = sorted({*bounds, *self.layout.offsets})
            cuts = pairwise(ends)
            return [Piece(a, b, bisect_right(bounds, a) - 1) for a, b in cuts]
        found = []
        for group, (first, last) in enumerate(pairwise(bounds)):
            step = 1 if unit is None else unit[group]
            columns = max(_CELLS // self.n // step, 1) * step
            found += [Piece(a, min(a + columns, last), group) for a in range(first, last, columns)]
        return found

    def order_statistics(self, bounds: Sequence[int], ranks: Ranks, key: Key = torch.Tensor.abs_) -> Tensor:
        """The keys of given ranks, per checkpoint and group: (n, G, R) float32, CPU; exact.

        ``ranks(size)`` names R ranks (0 is the smallest) among the ``size`` keys of a group; ``key`` makes them of a
        block, coordinate by coordinate (the magnitudes by default).
        """

        def keys(start: int, stop: int) -> Tensor:
            return key(self.load(start, stop))

        whole = None if self._transform is None else [(p.start, p.stop) for p in self.pieces(bounds)]
        found = []
        for start, stop in pairwise(bounds):
            inside = None if whole is None else [(a, b) for a, b in whole if start <= a < stop]
            found.append(order_statistics(keys, start, stop, ranks(stop - start), self.n, pieces=inside))
        return torch.stack(found, dim=1)

    def merge(self, work: Callable[[Tensor, Piece], Tensor], pieces: Sequence[Piece]) -> Tensor:
        """The vector (P,) whose coordinates in each piece are ``work(block, piece)``, (n, C) → (C,)."""
        out = torch.empty(self.layout.size, device=self.vectors.base.device)
        self.merge_into(out, work, pieces)
        return out

    def merge_into(self, out: Tensor, work: Callable[[Tensor, Piece], Tensor], pieces: Sequence[Piece]) -> None:
        """:meth:`merge` of some pieces only, into a vector (P,) that exists."""

        def one(piece: Piece) -> None:
            out[piece.start : piece.stop] = work(self.load(piece.start, piece.stop), piece)

        in_parallel(one, pieces, out.device)

    def per_tensor(self, work: Callable[[int], Tensor]) -> Tensor:
        """The vector (P,) whose part in each tensor is ``work(tensor)``, flat; the largest tensors come first."""
        out = torch.empty(self.layout.size, device=self.vectors.base.device)
        offsets = self.layout.offsets

        def one(tensor: int) -> None:
            out[offsets[tensor] : offsets[tensor + 1]] = work(tensor)

        largest = sorted(range(len(self.layout.names)), key=lambda j: offsets[j] - offsets[j + 1])
        in_parallel(one, largest, out.device)
        return out


@lru_cache(maxsize=1)
def _keep_freed_pages() -> None:
    """Let the C library keep up to twice ``_KEPT_BYTES`` of freed memory instead of giving pages back after each piece.

    A piece's temporaries have a few MB together. While the freed memory is more than glibc's threshold it returns them
    to the system and faults them in again for the next piece, which took half the time of DELLA, or none of it, as
    the sizes happened to fall. A block that was mapped and is freed raises that threshold to twice its size; this one
    is never written to. Elsewhere nothing happens.
    """
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)
