"""The one solver of merging coefficients.

Whatever a method learns, the merged weights are θ₀ + Σᵢ λ[g,i]·τᵢ,g and ∂ℓ/∂λ[g,i] = ⟨∇_g ℓ(θ), τᵢ,g⟩ = S[g,i]: one
ordinary backward pass at the merged weights, then inner products streamed over the task vectors. No autograd graph
over checkpoints, no copy of them. A method says how its weights w make λ (:class:`Affine`) and which set w lives in
(a projection); the solver does the rest and yields after every update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.space.simplex import sum_groups
from fwviz.types import Groups, LossName, Objective, TaskVectors

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Affine:
    """λ(w)[g] = offset[g] + Σ_j w[parent(g), j] · directions[j, g]: coefficients as an affine image of the weights.

    offset (G, n); directions (m, G, n); ``parent`` (G,) names the row of w that moves group g; w has ``rows`` rows.
    With offset 0 and directions eⱼ the weights are the coefficients themselves.
    """

    offset: Tensor
    directions: Tensor
    parent: Tensor
    rows: int

    def coefficients(self, weights: Tensor) -> Tensor:
        """λ(w): weights (rows, m) → (G, n)."""
        return self.offset + torch.einsum("gj,jgn->gn", weights[self.parent], self.directions)

    def pull_back(self, products: Tensor) -> Tensor:
        """∂ℓ/∂w from S: products (G, n) → (rows, m)."""
        return sum_groups(torch.einsum("jgn,gn->gj", self.directions, products), self.parent, self.rows)

    def columns(self) -> list[int]:
        """The checkpoints that can have a coefficient other than zero; only these are ever read."""
        used = self.offset.ne(0).any(dim=0) | self.directions.ne(0).any(dim=1).any(dim=0)
        return [int(i) for i in used.nonzero().flatten()]


@dataclass(frozen=True)
class Progress:
    """One update: the weights after it, and the joint loss measured where its gradient was taken."""

    update: int
    weights: Tensor
    loss: float


class Landscape:
    """Loss and gradient as functions of the weights w, rebuilt at every point into the one buffer ``theta`` (P,).

    Only the checkpoints that can have a coefficient other than zero are ever read.
    """

    def __init__(
        self, family: Affine, vectors: TaskVectors, groups: Groups, objective: Objective, loss: LossName, theta: Tensor
    ) -> None:
        columns = family.columns() or [0]
        self.family = family
        self.narrow = Affine(family.offset[:, columns], family.directions[:, :, columns], family.parent, family.rows)
        self.vectors = vectors.subset(columns)
        self.groups, self.objective, self.loss, self.theta = groups, objective, loss, theta

    def point(self, weights: Tensor) -> Tensor:
        """θ(w), borrowed: (rows, m) → (P,)."""
        return self.vectors.combine(self.narrow.coefficients(weights).float(), self.groups, out=self.theta)

    def value(self, weights: Tensor) -> float:
        """The joint loss over all samples."""
        return float(self.objective.losses(self.point(weights), loss=self.loss).mean())

    def slope(
        self, weights: Tensor, batch_size: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[float, Tensor]:
        """Joint loss and its gradient (rows, m) by the identity S; a random batch per task, or all samples."""
        losses, gradient = self.objective.gradient(
            self.point(weights), loss=self.loss, batch_size=batch_size, generator=generator
        )
        products = self.vectors.scores(gradient, self.groups).double()
        return float(losses.mean()), self.narrow.pull_back(products)


def adam(
    landscape: Landscape,
    start: Tensor,
    project: Projection,
    *,
    updates: int,
    rate: float,
    batch_size: int | None,
    generator: torch.Generator,
    decay: bool,
) -> Iterator[Progress]:
    """Adam on w with a projection after every update: the rule for noisy gradients of small batches.

    With ``decay`` the rate falls along half a cosine to a tenth, and the last weights are the mean of the last quarter
    of the updates, which averages the noise of the batches out.

    Args: start (rows, m); ``rate`` the largest change of a weight per update; β = (0.9, 0.999). Kingma & Ba (2015).
    """
    weights = start.clone()
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    late: list[Tensor] = []
    for update in range(1, updates + 1):
        loss, gradient = landscape.slope(weights, batch_size, generator)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        step = (mean / (1 - 0.9**update)) / ((square / (1 - 0.999**update)).sqrt() + 1e-8)
        share = 0.55 + 0.45 * math.cos(math.pi * (update - 1) / updates) if decay else 1.0
        weights = project(weights - rate * share * step)
        if decay and update > 0.75 * updates:
            late.append(weights)
        if update == updates and late:
            weights = torch.stack(late).mean(dim=0)
        yield Progress(update, weights.clone(), loss)


def projected_gradient(
    landscape: Landscape, start: Tensor, project: Projection, *, updates: int, reach: float = 0.25
) -> Iterator[Progress]:
    """Projected gradient on all samples with Barzilai–Borwein steps and backtracking: the loss never rises.

    The first step moves the largest weight by ``reach``; later ones are ⟨δw, δw⟩ / ⟨δw, δ∇⟩. A trial that does not
    lower the loss enough (Armijo, 1e-4) is pulled back along its segment. Birgin, Martínez & Raydan (2000), SPG2 with
    a memory of one. ``updates`` counts gradients.

    Args: start (rows, m), a point of the set. The weights yielded are the best so far.
    """
    weights = start.clone()
    loss, gradient = landscape.slope(weights)
    yield Progress(1, weights.clone(), loss)
    length = reach / max(float(gradient.abs().max()), 1e-12)
    toward, share = project(weights - length * gradient) - weights, 1.0
    for update in range(2, updates + 1):
        descent = float((gradient * toward).sum())
        if descent > -1e-12:
            return
        trial = weights + share * toward
        value, slope = landscape.slope(trial)
        if value <= loss + 1e-4 * share * descent:
            moved, turned = trial - weights, slope - gradient
            bend = float((moved * turned).sum())
            longest = 4.0 * reach / max(float(slope.abs().max()), 1e-12)
            length = min(float(moved.square().sum()) / bend, longest) if bend > 0 else longest
            weights, loss, gradient = trial, value, slope
            toward, share = project(weights - length * gradient) - weights, 1.0
        else:
            bend = value - loss - share * descent
            share *= min(max(-0.5 * descent * share / bend, 0.1), 0.5)
        yield Progress(update, weights.clone(), loss)
