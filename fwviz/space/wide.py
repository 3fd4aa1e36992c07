"""Arithmetic in float64 wherever the weights lie: Apple's devices have none, and their memory is the CPU's anyway."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PIECE = 1 << 22  # elements worked on at a time: 32 MB instead of 8·P bytes
_WITHOUT = ("mps",)


def home(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: there, or on the CPU."""
    return torch.device("cpu") if device.type in _WITHOUT else device


def double(values: Tensor) -> Tensor:
    """The values in float64, at :func:`home`."""
    return values.to(home(values.device)).double()


def total(values: Tensor) -> float:
    """The sum of a flat vector (P,) in float64, piece by piece."""
    return math.fsum(float(double(piece).sum()) for piece in values.split(_PIECE))


def dot(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ of flat vectors (P,) in float64, piece by piece: libraries of GPUs count no further than 2³¹."""
    pieces = zip(a.split(_PIECE), b.split(_PIECE), strict=True)
    return math.fsum(float(torch.dot(double(p), double(q))) for p, q in pieces)
