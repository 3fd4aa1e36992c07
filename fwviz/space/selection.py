"""Exact order statistics of very long rows, without sorting them and without holding them.

A sample brackets each wanted value; one pass counts what lies beside the bracket and collects what lies inside it. The
answer is then an order statistic of the few collected values. Where the sample misled, the bracket is widened and the
pass repeated, so the result is exact whatever the data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fwviz.space.parallel import in_parallel

# (start, stop) → the keys (n, stop − start) of a range of columns, a new tensor.
Keys = Callable[[int, int], Tensor]

_DIRECT = 1 << 22  # elements of all rows together that are simply held
_CELLS = 1 << 18  # elements of all rows together in one piece of a pass: they and the masks stay in cache
_WINDOWS, _WIDTH = 1024, 256  # the sample: that many ranges of so many columns
_SIGMAS = 5.0  # half the bracket, in standard errors of the sample
_WIDER = 8.0  # times as wide is a bracket that missed: all that is left of a long row would be a copy of it


def order_statistics(
    keys: Keys, start: int, stop: int, ranks: Sequence[int], n: int, *, pieces: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """The ``ranks``-th smallest keys (0 is the smallest) of each row over the columns [start, stop): (n, len(ranks)).

    Exact, with equal keys as if sorted. Reads the columns about once, whatever ``ranks`` are.

    Args: ``keys`` gives finite float32 keys of n rows; a column's keys must not depend on the range they are asked in.
    ``pieces`` are the only ranges it can be asked for, if not any: the columns are then read about twice.
    """
    if any(not 0 <= rank < stop - start for rank in ranks):
        raise ValueError(f"ranks {list(ranks)} of {stop - start} columns")
    if n * (stop - start) <= _DIRECT:
        ranges = [(start, stop)] if pieces is None else pieces
        whole = np.concatenate([_numpy(keys(a, b)) for a, b in ranges], axis=1)
        return torch.tensor([[_smallest(row, rank) for rank in ranks] for row in whole]).view(n, len(ranks))
    found = np.full((n, len(ranks)), np.nan, dtype=np.float32)
    sample = _windows(keys, start, stop) if pieces is None else _strides(keys, pieces, stop - start)
    wanted = _brackets(sample, stop - start, ranks)
    columns = max(_CELLS // n, 1)
    ranges = pieces or [(a, min(a + columns, stop)) for a in range(start, stop, columns)]
    while wanted:
        tallies = _pass(keys, ranges, wanted)
        missed = []
        for bracket, tally in zip(wanted, tallies, strict=True):
            value = tally.answer(bracket)
            if value is None:
                missed.append(tally.wider(bracket))
            else:
                found[bracket.row, bracket.column] = value
        wanted = missed
    return torch.from_numpy(found)


@dataclass(frozen=True)
class _Bracket:
    """Where the ``rank``-th smallest key of a row is sought: in [low, high]; it is entry ``column`` of the answer.

    The ends are keys of the row's ``sample``, which is sorted, ``margin`` entries from the ``place`` that has the rank.
    """

    row: int
    column: int
    rank: int
    sample: np.ndarray
    place: float
    margin: float
    least: float = -np.inf  # known bounds of the key
    most: float = np.inf

    @property
    def low(self) -> float:
        at = int(self.place - self.margin)
        return max(self.least, float(self.sample[at])) if at >= 0 else self.least

    @property
    def high(self) -> float:
        at = int(np.ceil(self.place + self.margin))
        return min(self.most, float(self.sample[at])) if at < self.sample.size else self.most


class _Tally:
    """How many keys lie below a bracket, up to its low end, below its high end and up to it; those strictly inside.

    What is inside goes into one growing buffer: thousands of small arrays, kept between blocks that come and go, would
    keep the memory of all those blocks from being used again.
    """

    def __init__(self) -> None:
        self.below = self.upto = self.under = self.through = 0
        self._buffer = np.empty(0, dtype=np.float32)
        self._count = 0

    def add(self, below: int, upto: int, through: int, inside: np.ndarray) -> None:
        """Count a piece in."""
        self.below += below
        self.upto += upto
        self.under += upto + inside.size
        self.through += through
        end = self._count + inside.size
        if end > self._buffer.size:
            grown = np.empty(2 * end, dtype=np.float32)
            grown[: self._count] = self._buffer[: self._count]
            self._buffer = grown
        self._buffer[self._count : end] = inside
        self._count = end

    def answer(self, bracket: _Bracket) -> float | None:
        """The key of the bracket's rank, None if it lies outside."""
        if self.below <= bracket.rank < self.upto:
            return bracket.low
        if self.upto <= bracket.rank < self.under:
            return _smallest(self._buffer[: self._count], bracket.rank - self.upto)
        if self.under <= bracket.rank < self.through:
            return bracket.high
        return None

    def wider(self, bracket: _Bracket) -> _Bracket:
        """A wider bracket on the side where the key must be."""
        wide = replace(bracket, margin=_WIDER * bracket.margin)
        return replace(wide, most=bracket.low) if bracket.rank < self.below else replace(wide, least=bracket.high)


def _windows(keys: Keys, start: int, stop: int) -> np.ndarray:
    """A sample (n, windows, width) of short ranges spread over the columns."""
    size = stop - start
    random = np.random.default_rng(0)  # any windows give the exact result; these the same passes every time
    edges = start + np.linspace(0, size - _WIDTH, _WINDOWS, dtype=np.int64)
    edges = np.minimum(edges + random.integers(0, max((size - _WIDTH) // _WINDOWS, 1), _WINDOWS), stop - _WIDTH)
    return np.stack([_numpy(keys(int(a), int(a) + _WIDTH)) for a in edges], axis=1)


def _strides(keys: Keys, pieces: Sequence[tuple[int, int]], size: int) -> np.ndarray:
    """A sample (n, columns, 1) of every so many columns of all pieces."""
    stride = max(size // (_WINDOWS * _WIDTH), 1) | 1  # odd, so that it does not walk down one column of a matrix
    parts = in_parallel(lambda piece: _numpy(keys(*piece))[:, ::stride].copy(), pieces, torch.device("cpu"))
    return np.concatenate(parts, axis=1)[:, :, None]


def _brackets(sample: np.ndarray, size: int, ranks: Sequence[int]) -> list[_Bracket]:
    """Around each rank, as wide as the spread between the windows of the sample (n, windows, width) says."""
    brackets = []
    for row, windows in enumerate(sample):
        ordered = np.sort(windows, axis=None)
        for column, rank in enumerate(ranks):
            place = rank / size * ordered.size
            below = (windows < ordered[min(int(place), ordered.size - 1)]).mean(axis=1)
            margin = _SIGMAS * (float(below.std()) / np.sqrt(len(windows)) * ordered.size + 1.0)
            brackets.append(_Bracket(row, column, rank, ordered, place, margin))
    return brackets


def _pass(keys: Keys, ranges: Sequence[tuple[int, int]], wanted: Sequence[_Bracket]) -> list[_Tally]:
    """One pass over the columns: the tally of every bracket."""

    totals = [_Tally() for _ in wanted]
    lock = threading.Lock()

    def work(piece: tuple[int, int]) -> None:
        block = _numpy(keys(*piece))
        for bracket, total in zip(wanted, totals, strict=True):
            found = _count(block[bracket.row], np.float32(bracket.low), np.float32(bracket.high))
            with lock:
                total.add(*found)

    in_parallel(work, ranges, torch.device("cpu"))
    return totals


def _count(row: np.ndarray, low: np.float32, high: np.float32) -> tuple[int, int, int, np.ndarray]:
    """One bracket in one piece: keys below it, up to its low end, up to its high end, and those strictly inside.

    The row is compared twice at most, what lies in the bracket once more.
    """
    below, through, within = 0, row.size, None
    if low > -np.inf:
        within = row >= low
        below = row.size - int(np.count_nonzero(within))
    if high < np.inf:
        to_high = row <= high
        through = int(np.count_nonzero(to_high))
        within = to_high if within is None else np.logical_and(within, to_high, out=within)
    closed = row if within is None else row[within]
    inside = closed[(closed > low) & (closed < high)]
    return below, below + int(np.count_nonzero(closed == low)), through, inside


def _numpy(keys: Tensor) -> np.ndarray:
    array: np.ndarray = keys.cpu().numpy()
    return array


def _smallest(values: np.ndarray, rank: int) -> float:
    """The rank-th smallest of a row, which is left in another order."""
    values.partition(rank)
    return float(values[rank])
