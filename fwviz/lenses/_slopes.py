"""Scores of vertices at a point: ⟨∇ℓ(θ), s − θ⟩ per group, exact for any θ, linear merge or not."""

from __future__ import annotations

import torch
from torch import Tensor

from fwviz.space.wide import double
from fwviz.types import FwvizError, Groups, Problem

_CHUNK = 1 << 22  # elements multiplied in float64 at a time: 32 MB instead of 8·P bytes


def point(problem: Problem, theta: Tensor | None) -> Tensor:
    """θ (P,) float32 on the device of the base; for None the base itself, in its own dtype.

    FwvizError if the length is another.
    """
    base = problem.vectors.base
    if theta is None:
        return base
    if theta.shape != base.shape:
        raise FwvizError(
            f"theta has shape {tuple(theta.shape)}, but the pool's models have {tuple(base.shape)} parameters."
        )
    return theta.to(base.device, torch.float32)


def slopes(problem: Problem, gradient: Tensor, theta: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """⟨∇_g, θ_i − θ⟩ (G, n) of the checkpoints and ⟨∇_g, θ₀ − θ⟩ (G,) of the base, float64 on the CPU.

    Computed as ⟨∇_g, τᵢ⟩ − ⟨∇_g, θ − θ₀⟩: all vertices share θ₀, so only differences are multiplied and digits stay.
    """
    anchor = moved(gradient, theta, problem.vectors.base, groups)
    return problem.vectors.scores(gradient, groups).double() - anchor[:, None], -anchor


def moved(gradient: Tensor, theta: Tensor, base: Tensor, groups: Groups) -> Tensor:
    """⟨∇_g, θ − θ₀⟩ (G,) in float64."""
    if theta is base:
        return torch.zeros(len(groups), dtype=torch.float64)
    sums = []
    for start, stop in groups.ranges():
        total = 0.0
        for a in range(start, stop, _CHUNK):
            b = min(a + _CHUNK, stop)
            total += float(torch.dot(double(gradient[a:b]), double(theta[a:b]) - double(base[a:b])))
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)
