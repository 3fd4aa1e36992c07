"""The one solver of merging coefficients.

Whatever a method learns, the merged weights are θ₀ + Σᵢ λ[g,i]·τᵢ,g and ∂ℓ/∂λ[g,i] = ⟨∇_g ℓ(θ), τᵢ,g⟩ = S[g,i]: one
ordinary backward pass at the merged weights, then inner products streamed over the task vectors. No autograd graph
over checkpoints, no copy of them. A method says how its weights w make λ (:class:`Affine`, :class:`Tanh`) and which set
w lives in (a projection); the solver does the rest and yields after every update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fwviz.space.simplex import sum_groups
from fwviz.types import FwvizError, Groups, LossName, Objective, TaskVectors

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

    @classmethod
    def free(cls, count: int, n: int) -> Self:
        """One weight per coefficient: offset 0 and directions eⱼ in each of ``count`` groups."""
        directions = torch.eye(n, dtype=torch.float64)[:, None, :].expand(-1, count, -1)
        return cls(torch.zeros(count, n, dtype=torch.float64), directions, torch.arange(count), count)

    def coefficients(self, weights: Tensor) -> Tensor:
        """λ(w): weights (rows, m) → (G, n)."""
        return self.offset + torch.einsum("gj,jgn->gn", weights[self.parent], self.directions)

    def pull_back(self, products: Tensor, weights: Tensor) -> Tensor:
        """∂ℓ/∂w at ``weights`` from S: products (G, n) → (rows, m)."""
        return sum_groups(torch.einsum("jgn,gn->gj", self.directions, products), self.parent, self.rows)

    def columns(self) -> list[int]:
        """The checkpoints that can have a coefficient other than zero; only these are ever read."""
        used = self.offset.ne(0).any(dim=0) | self.directions.ne(0).any(dim=1).any(dim=0)
        return [int(i) for i in used.nonzero().flatten()]

    def narrowed(self, columns: Sequence[int]) -> Self:
        """The same family for a subset of the checkpoints."""
        columns = list(columns)
        return replace(self, offset=self.offset[:, columns], directions=self.directions[:, :, columns])


class Tanh(Affine):
    """λ(w) = offset + Σ_j tanh(w_j)·directions_j: each weight reaches at most one direction forth or back.

    SuperMerge, eq. 4. The chain rule adds the factor 1 − tanh²(w).
    """

    def coefficients(self, weights: Tensor) -> Tensor:
        return super().coefficients(weights.tanh())

    def pull_back(self, products: Tensor, weights: Tensor) -> Tensor:
        return super().pull_back(products, weights) * (1.0 - weights.tanh().square())


@dataclass(frozen=True)
class Progress:
    """One update: the weights after it, and the joint loss measured where its gradient was taken.

    After a ``rejected`` one, tried where loss or gradient are not finite, both are those of the update before.
    """

    update: int
    weights: Tensor
    loss: float
    rejected: bool = False


class Landscape:
    """Loss and gradient as functions of the weights w, rebuilt at every point into the one buffer ``theta`` (P,).

    Only the checkpoints that can have a coefficient other than zero are ever read. The loss is the mean over ``tasks``,
    all of the objective's if None.
    """

    def __init__(
        self,
        family: Affine,
        vectors: TaskVectors,
        groups: Groups,
        objective: Objective,
        loss: LossName,
        theta: Tensor,
        tasks: Sequence[str] | None = None,
    ) -> None:
        columns = family.columns() or [0]
        self.family = family
        self.narrow = family.narrowed(columns)
        self.vectors = vectors.subset(columns)
        self.groups, self.objective, self.loss, self.theta, self.tasks = groups, objective, loss, theta, tasks

    def point(self, weights: Tensor) -> Tensor:
        """θ(w), borrowed: (rows, m) → (P,)."""
        return self.vectors.combine(self.narrow.coefficients(weights).float(), self.groups, out=self.theta)

    def value(self, weights: Tensor) -> float:
        """The joint loss over all samples."""
        return float(self.objective.losses(self.point(weights), tasks=self.tasks, loss=self.loss).mean())

    def slope(
        self, weights: Tensor, batch_size: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[float, Tensor]:
        """Joint loss and its gradient (rows, m) by the identity S; a random batch per task, or all samples."""
        losses, gradient = self.objective.gradient(
            self.point(weights), tasks=self.tasks, loss=self.loss, batch_size=batch_size, generator=generator
        )
        products = self.vectors.scores(gradient, self.groups).double()
        # The bias of attention's keys moves no loss; Adam would blow its rounding noise up to full updates.
        noise = torch.finfo(torch.float32).eps * float(products.abs().max())
        products[products.abs() < noise] = 0.0
        return float(losses.mean()), self.narrow.pull_back(products, weights)


class Moments:
    """Adam's running means of gradients and their squares, β = (0.9, 0.999). Kingma & Ba (2015), algorithm 1."""

    def __init__(self, like: Tensor) -> None:
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)
        self._count = 0

    def direction(self, gradient: Tensor) -> Tensor:
        """Take one gradient in; the mean gradient over the root of the mean square, both corrected for the start."""
        self._count += 1
        self._mean.mul_(0.9).add_(gradient, alpha=0.1)
        self._square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (self._square / (1 - 0.999**self._count)).sqrt_().add_(1e-8)
        return (self._mean / (1 - 0.9**self._count)).div_(scale)


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
    weight_decay: float = 0.0,
) -> Iterator[Progress]:
    """Adam on w with a projection after every update: the rule for noisy gradients of small batches.

    With ``decay`` the rate falls along half a cosine to a tenth, and the last weights are the mean of the last quarter
    of the updates, which averages the noise of the batches out. ``weight_decay`` makes it AdamW: before every update
    the weights shrink by the factor 1 − rate·weight_decay (Loshchilov & Hutter, 2019).

    Args: start (rows, m); ``rate`` the largest change of a weight per update; β = (0.9, 0.999). Kingma & Ba (2015).
    """
    weights = start.clone()
    moments = Moments(weights)
    late: list[Tensor] = []
    for update in range(1, updates + 1):
        loss, gradient = landscape.slope(weights, batch_size, generator)
        share = 0.55 + 0.45 * math.cos(math.pi * (update - 1) / updates) if decay else 1.0
        weights = project((1.0 - rate * share * weight_decay) * weights - rate * share * moments.direction(gradient))
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
    lower the loss enough (Armijo, 1e-4) is pulled back along its segment, to a tenth of it where loss or gradient are
    not finite. Birgin, Martínez & Raydan (2000), SPG2 with a memory of one. ``updates`` counts gradients.

    Args: start (rows, m), a point of the set. The weights yielded are the best so far.
    Raises FwvizError if there is no finite gradient at the start.
    """
    weights = start.clone()
    loss, gradient = landscape.slope(weights)
    if not _finite(loss, gradient):
        raise FwvizError("the gradient of the merge is not-a-number where it starts: lower the scale or the step size.")
    yield Progress(1, weights.clone(), loss)
    length = reach / max(float(gradient.abs().max()), 1e-12)
    toward, share = project(weights - length * gradient) - weights, 1.0
    for update in range(2, updates + 1):
        descent = float((gradient * toward).sum())
        if descent > -1e-12:
            return
        trial = weights + share * toward
        value, slope = landscape.slope(trial)
        rejected = not _finite(value, slope)
        if rejected:
            share *= 0.1
        elif value <= loss + 1e-4 * share * descent:
            moved, turned = trial - weights, slope - gradient
            bend = float((moved * turned).sum())
            longest = 4.0 * reach / max(float(slope.abs().max()), 1e-12)
            length = min(float(moved.square().sum()) / bend, longest) if bend > 0 else longest
            weights, loss, gradient = trial, value, slope
            toward, share = project(weights - length * gradient) - weights, 1.0
        else:
            bend = value - loss - share * descent
            share *= min(max(-0.5 * descent * share / bend, 0.1), 0.5)
        yield Progress(update, weights.clone(), loss, rejected)


def _finite(loss: float, gradient: Tensor) -> bool:
    return math.isfinite(loss) and bool(gradient.isfinite().all())
