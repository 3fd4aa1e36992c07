"""The random draws of DARE and DELLA: those of a checkpoint depend on the seed and its name, and on nothing else."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from fwviz.space.blocks import Piece
from fwviz.types import Problem

UNIT = 1 << 17  # coordinates that share one generator: enough that making it takes no time


def uniform(problem: Problem, piece: Piece, unit: int) -> Tensor:
    """Uniform numbers in [0, 1) for a piece: (n, C), on the base's device.

    ``piece`` starts at a multiple of ``unit`` columns from where its group starts, so that however the coordinates are
    cut every one of them gets the same draw.
    """
    draws = torch.empty(problem.vectors.n, piece.stop - piece.start)
    for row, name in zip(draws, problem.vectors.names, strict=True):
        stream = zlib.crc32(name.encode()) << 30
        for first in range(0, row.numel(), unit):
            part = row[first : first + unit]
            seed = problem.generator(stream + piece.start + first).initial_seed()
            # Half the time of torch's own generator, which is most of what dropping takes.
            np.random.Generator(np.random.SFC64(seed)).random(out=part.numpy(), dtype=np.float32)
    return draws.to(problem.vectors.base.device)
