"""Planes in weight space: through three models, or along two random directions; and where other models lie beside them.

Coordinates are lengths: θ = origin + x·u + y·v with u and v orthonormal, so that a picture keeps distances and angles.
What a picture cannot show is said beside it: how much of a model's distance from the origin lies outside the plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.space.simplex import parents
from fwviz.space.wide import dot, double
from fwviz.types import FwvizError, Granularity, ParamLayout, TaskVectors

BASE = "base"
_CHUNK = 1 << 22  # elements worked on in float64 at a time
_FLAT = 1e-3  # sine of the smallest angle between two sides: below it, three models count as lying on one line


@dataclass(frozen=True)
class Place:
    """A model beside a plane: its foot (x, y), its distance from the origin, and its distance from the plane."""

    x: float
    y: float
    distance: float
    outside: float

    @property
    def share(self) -> float:
        """``outside`` ÷ ``distance``, in [0, 1]: 0 in the plane and at the origin, 1 straight above the origin."""
        return min(self.outside / self.distance, 1.0) if self.distance > 0.0 else 0.0


@dataclass(frozen=True)
class Plane:
    """origin + x·u + y·v over flat (P,) float32 vectors, u and v orthonormal.

    ``corners`` maps the models that span it to their (x, y). ``span`` (3, n) float64 holds the coefficients of
    origin − θ₀, u and v over the task vectors the plane was made of, None for directions that are not made of them.
    ``unit`` is the length a picture should reach: that of the longer side, or of a random direction.
    """

    origin: Tensor
    u: Tensor
    v: Tensor
    corners: dict[str, tuple[float, float]]
    unit: float
    span: Tensor | None = None

    def point(self, x: float, y: float, out: Tensor) -> Tensor:
        """θ = origin + x·u + y·v, written into ``out`` (P,)."""
        torch.add(self.origin, self.u, alpha=x, out=out)
        return out.add_(self.v, alpha=y)

    def locate(self, theta: Tensor) -> Place:
        """Where any θ (P,) lies, in float64, piece by piece."""
        products = [0.0, 0.0]
        for a in range(0, theta.numel(), _CHUNK):
            moved = double(theta[a : a + _CHUNK]) - double(self.origin[a : a + _CHUNK])
            for k, axis in enumerate((self.u, self.v)):
                products[k] += float(torch.dot(moved, double(axis[a : a + _CHUNK])))
        x, y = products
        square = left = 0.0
        for a in range(0, theta.numel(), _CHUNK):
            part = slice(a, a + _CHUNK)
            moved = double(theta[part]) - double(self.origin[part])
            square += float(torch.dot(moved, moved))
            # Lengths of what remains, not a difference of squares: in the plane it is 0, not a rounding error's root.
            moved.sub_(double(self.u[part]), alpha=x).sub_(double(self.v[part]), alpha=y)
            left += float(torch.dot(moved, moved))
        return Place(x, y, math.sqrt(square), math.sqrt(left))


class Projector:
    """Places linear merges beside a plane by their coefficients alone, through inner products: θ is never built."""

    def __init__(self, plane: Plane, vectors: TaskVectors) -> None:
        """Reads every checkpoint of ``vectors`` once, and three times more if the plane is not made of them.

        ``vectors`` must be those the plane was made of, in their order, if it has a ``span``.
        """
        self.plane = plane
        self._vectors = vectors
        self._fine = vectors.layout.groups("tensor")
        self._gram = vectors.gram(self._fine)
        if plane.span is None:
            away = plane.origin - vectors.base
            self._square = dot(away, away)
            self._products = [vectors.scores(axis, self._fine).double() for axis in (away, plane.u, plane.v)]
            self._offsets = [dot(away, axis) for axis in (plane.u, plane.v)]

    def locate(self, coefficients: Tensor, granularity: Granularity) -> Place:
        """Where θ₀ + Σᵢ λ[g, i]·τᵢ,g lies. coefficients (G, n)."""
        parent = parents(self._fine, self._vectors.layout.groups(granularity))
        weights = coefficients.detach().double().cpu()[parent]
        if self.plane.span is None:
            return self._beside(weights)
        moved = weights - self.plane.span[0]
        x, y = (float(self._inner(moved, axis.expand_as(moved))) for axis in self.plane.span[1:])
        left = moved - x * self.plane.span[1] - y * self.plane.span[2]
        square, rest = self._inner(moved, moved), self._inner(left, left)
        return Place(x, y, math.sqrt(max(square, 0.0)), math.sqrt(max(rest, 0.0)))

    def _beside(self, weights: Tensor) -> Place:
        away, u, v = (float((weights * products).sum()) for products in self._products)
        x, y = u - self._offsets[0], v - self._offsets[1]
        square = max(self._inner(weights, weights) - 2.0 * away + self._square, 0.0)
        return Place(x, y, math.sqrt(square), math.sqrt(max(square - x * x - y * y, 0.0)))

    def _inner(self, a: Tensor, b: Tensor) -> float:
        """Σ_g a_gᵀ K_g b_g."""
        return float(torch.einsum("gi,gij,gj->", a, self._gram, b))


def plane_through(vectors: TaskVectors, models: Sequence[str]) -> Plane:
    """The plane through three models, each a checkpoint's name or "base"; the first is the origin, x leads to the next.

    Reads the checkpoints named, twice. FwvizError if a model is unknown or named twice, or if the three lie on a line.
    """
    if len(models) != 3 or len(set(models)) < 3:
        raise FwvizError(f"a plane needs three different models, but this is {', '.join(models) or 'none'}.")
    for name in models:
        if name != BASE and name not in vectors.names:
            raise FwvizError(f"{name!r} is not merged here: choose base or one of {', '.join(vectors.names)}.")
    used = [vectors.names.index(name) for name in models if name != BASE]
    part = vectors.subset(used)
    gram = part.gram(vectors.layout.groups("model"))[0]
    rows = torch.zeros(3, part.n, dtype=torch.float64)
    for row, name in zip(rows, models, strict=True):
        if name != BASE:
            row[part.names.index(name)] = 1.0
    first, second = rows[1] - rows[0], rows[2] - rows[0]

    def length(a: Tensor) -> float:
        return math.sqrt(max(float(a @ gram @ a), 0.0))

    width, side = length(first), length(second)
    if width == 0.0 or side == 0.0:
        raise FwvizError(f"{models[0]!r} and {models[1 if width == 0.0 else 2]!r} are the same model: choose another.")
    u = first / width
    x = float(second @ gram @ u)
    upright = second - x * u
    height = length(upright)
    if height <= _FLAT * side:
        raise FwvizError(f"{', '.join(models)} lie on one line, which spans no plane: choose another model.")
    span = torch.zeros(3, vectors.n, dtype=torch.float64)
    span[:, used] = torch.stack([rows[0], u, upright / height])
    made = [torch.zeros_like(vectors.base, dtype=torch.float32) for _ in range(3)]
    for i in used:
        tau = vectors.vector(i)
        for target, share in zip(made, span[:, i].tolist(), strict=True):
            target.add_(tau, alpha=share)
    origin, *axes = made
    corners = {models[0]: (0.0, 0.0), models[1]: (width, 0.0), models[2]: (x, height)}
    return Plane(origin.add_(vectors.base), axes[0], axes[1], corners, max(width, side), span)


def random_plane(layout: ParamLayout, origin: Tensor, seed: int) -> Plane:
    """Two random directions around ``origin`` (P,), each filter as long as the model's own, made orthonormal.

    A Gaussian direction d is scaled filter by filter, d_f ← d_f·‖θ_f‖/‖d_f‖, a filter being a row of a matrix; vectors
    (biases, norms) stay as they are, d = 0. So a unit of the picture means the same for layers of any scale.
    Source: Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, §4.
    """
    generator = torch.Generator().manual_seed(seed)
    u, v = (_filter_normalised(layout, origin, generator) for _ in range(2))
    length = math.sqrt(dot(u, u))
    if length == 0.0:
        raise FwvizError("the model has no matrix that is not zero, so it has no filter-normalised directions.")
    u.div_(length)
    v.sub_(u, alpha=dot(u, v))
    v.div_(math.sqrt(dot(v, v)))
    return Plane(origin, u, v, {}, length)


def _filter_normalised(layout: ParamLayout, origin: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.zeros_like(origin)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) > 1:
            target, own = layout.view(direction, name).flatten(1), layout.view(origin, name).flatten(1)
            target.copy_(torch.randn(target.shape, generator=generator))  # drawn on the CPU: the same on any device
            target.mul_(own.norm(dim=1, keepdim=True) / target.norm(dim=1, keepdim=True))
    return direction
