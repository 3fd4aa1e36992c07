"""Cutting the samples of several tasks into passes that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch

from fwviz.types import FwvizError

Result = TypeVar("Result")


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


class Chunk:
    """How many samples make one pass: as many as asked for until memory runs out, then half as many, for good."""

    def __init__(self, size: int) -> None:
        self.size = size

    def fit(self, count: int, work: Callable[[int], Result]) -> Result:
        """``work(samples per pass)`` over ``count`` samples, begun anew with half of them whenever memory runs out.

        ``work`` must not build on what an attempt before it left behind. Raises FwvizError if one sample is too many.
        """
        while True:
            try:
                return work(self.size)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            # Only here, behind the except, the error's frames are gone and with them the activations they held.
            if min(self.size, count) <= 1:
                raise FwvizError(
                    "the device has no memory left for one sample at a time: set storage to streamed, take fewer "
                    "checkpoints or choose another device."
                )
            self.size = min(self.size, count) // 2
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # blocks of the larger pass are of no use to smaller ones


def out_of_memory(error: BaseException) -> bool:
    """True for Python's own error and those of torch's allocators; some of them are plain RuntimeErrors."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("out of memory", "allocate memory", "ALLOC_FAILED")  # cuda and mps; the CPU; cublas and cudnn
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
