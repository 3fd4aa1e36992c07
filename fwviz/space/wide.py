"""Arithmetic in another precision than the weights', piece by piece, so that no vector (P,) is widened as a whole.

In float64 wherever the weights lie: Apple's devices have none, and their memory is the CPU's anyway. And with a base in
half precision beside everything else in float32.
"""

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


def plus(base: Tensor, delta: Tensor, out: Tensor | None = None, *, share: float = 1.0) -> Tensor:
    """θ₀ + share·δ: base (P,) of any dtype, delta (P,) float32 → ``out``, which may be δ; a new vector if None."""
    out = torch.empty_like(delta) if out is None else out
    for a, b, to in zip(base.split(_PIECE), delta.split(_PIECE), out.split(_PIECE), strict=True):
        torch.add(a, b, alpha=share, out=to)
    return out


def minus(theta: Tensor, base: Tensor, out: Tensor) -> Tensor:
    """θ − θ₀: theta (P,) float32, base (P,) of any dtype → ``out``, which may be θ itself."""
    for a, b, to in zip(theta.split(_PIECE), base.split(_PIECE), out.split(_PIECE), strict=True):
        torch.sub(a, b, out=to)
    return out
