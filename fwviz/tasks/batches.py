"""Cutting the samples of several tasks into passes of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Samples [start, stop) of task ``task`` (its position), as far as they fall into one pass."""

    task: int
    start: int
    stop: int


def passes(counts: Sequence[int], chunk: int) -> Iterator[list[Piece]]:
    """Pieces of at most ``chunk`` samples together, covering ``counts[k]`` samples of every task in order.

    A pass may hold samples of several tasks: small batches of many tasks then cost no more than one large one.
    """
    current: list[Piece] = []
    room = chunk
    for task, count in enumerate(counts):
        start = 0
        while start < count:
            take = min(room, count - start)
            current.append(Piece(task, start, start + take))
            start += take
            room -= take
            if not room:
                yield current
                current, room = [], chunk
    if current:
        yield current
