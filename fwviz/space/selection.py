"""Exact order statistics of very long rows, without sorting them and without holding them.

A sample brackets each wanted value; one pass counts what lies beside the bracket and collects what lies inside it. The
answer is then an order statistic of the few collected values. Where the sample misled, the bracket is widened and the
pass repeated, so the result is exact whatever the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fwviz.space.vectors import in_parallel

# (start, stop) → the keys (n, stop − start) of a range of columns, a new tensor.
Keys = Callable[[int, int], Tensor]

_DIRECT = 1 << 22  # elements of all rows together that are simply held
_CELLS = 1 << 18  # elements of all rows together in one piece of a pass: they and the masks stay in cache
_WINDOWS, _WIDTH = 1024, 256  # the sample: that many ranges of so many columns
_SIGMAS = 5.0  # half the bracket, in standard errors of the sample


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
    """Where the ``rank``-th smallest key of a row is sought: in [low, high]; it is entry ``column`` of the answer."""

    row: int
    column: int
    rank: int
    low: float
    high: float


@dataclass
class _Tally:
    """How many keys lie below a bracket, up to its low end, below its high end and up to it; those strictly inside."""

    below: int
    upto: int
    under: int
    through: int
    inside: list[np.ndarray]

    def add(self, other: _Tally) -> None:
        self.below += other.below
        self.upto += other.upto
        self.under += other.under
        self.through += other.through
        self.inside += other.inside

    def answer(self, bracket: _Bracket) -> float | None:
        """The key of the bracket's rank, None if it lies outside."""
        if self.below <= bracket.rank < self.upto:
            return bracket.low
        if self.upto <= bracket.rank < self.under:
            return _smallest(np.concatenate(self.inside), bracket.rank - self.upto)
        if self.under <= bracket.rank < self.through:
            return bracket.high
        return None

    def wider(self, bracket: _Bracket) -> _Bracket:
        """All that is left on the side where the key must be."""
        low, high = (-np.inf, bracket.low) if bracket.rank < self.below else (bracket.high, np.inf)
        return _Bracket(bracket.row, bracket.column, bracket.rank, float(low), float(high))


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
            low, high = int(place - margin), int(np.ceil(place + margin))
            brackets.append(
                _Bracket(
                    row,
                    column,
                    rank,
                    float(ordered[low]) if low >= 0 else -np.inf,
                    float(ordered[high]) if high < ordered.size else np.inf,
                )
            )
    return brackets


def _pass(keys: Keys, ranges: Sequence[tuple[int, int]], wanted: Sequence[_Bracket]) -> list[_Tally]:
    """One pass over the columns: the tally of every bracket."""

    def work(piece: tuple[int, int]) -> list[_Tally]:
        block = _numpy(keys(*piece))
        return [_tally(block[bracket.row], np.float32(bracket.low), np.float32(bracket.high)) for bracket in wanted]

    totals = [_Tally(0, 0, 0, 0, []) for _ in wanted]
    for tallies in in_parallel(work, ranges, torch.device("cpu")):
        for total, tally in zip(totals, tallies, strict=True):
            total.add(tally)
    return totals


def _tally(row: np.ndarray, low: np.float32, high: np.float32) -> _Tally:
    """The tally of one bracket in one piece: the row is compared twice at most, what lies in the bracket once more."""
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
    upto = below + int(np.count_nonzero(closed == low))
    return _Tally(below, upto, upto + len(inside), through, [inside])


def _numpy(keys: Tensor) -> np.ndarray:
    array: np.ndarray = keys.cpu().numpy()
    return array


def _smallest(values: np.ndarray, rank: int) -> float:
    """The rank-th smallest of a row, which is left in another order."""
    values.partition(rank)
    return float(values[rank])
