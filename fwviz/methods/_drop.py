"""The random draws of DARE and DELLA: those of a checkpoint depend on the seed and its name, and on nothing else."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fwviz.space.blocks import Piece
from fwviz.types import Problem

UNIT = 1 << 17  # coordinates that share one generator: enough that making it takes no time
_FRACTIONS, _ONES = 0x007FFFFF_007FFFFF, 0x3F800000_3F800000


def uniform(problem: Problem, piece: Piece, unit: int, rows: Sequence[int] | None = None) -> Tensor:
    """Uniform numbers in [0, 1) for a piece: (n, C), on the base's device; of some checkpoints if given.

    ``piece`` starts at a multiple of ``unit`` columns from where its group starts, so that however the coordinates are
    cut every one of them gets the same draw.
    """
    chosen = range(problem.vectors.n) if rows is None else rows
    draws = torch.empty(len(chosen), piece.stop - piece.start)
    for row, i in zip(draws, chosen, strict=True):
        stream = zlib.crc32(problem.vectors.names[i].encode()) << 30
        for first in range(0, row.numel(), unit):
            part = row[first : first + unit]
            seed = problem.generator(stream + piece.start + first).initial_seed()
            # 23 random bits behind the exponent of 1 are a float32 in [1, 2), two of them in 64 bits: half the time of
            # torch's own generator, which is most of what dropping takes.
            words = np.random.SFC64(seed).random_raw((part.numel() + 1) // 2)
            pairs = torch.from_numpy(words.view(np.int64)).bitwise_and_(_FRACTIONS).bitwise_or_(_ONES)
            torch.sub(pairs.view(torch.float32)[: part.numel()], 1.0, out=part)
    return draws.to(problem.vectors.base.device)
