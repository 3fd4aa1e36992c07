"""A convex merging problem with a known answer: quadratic losses over random task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fwviz.space.layout import build_layout
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import LossName, ParamLayout, Problem

INPUTS = 12  # samples per task that a probe sees
WIDTH = 5  # of a feature

SHAPES = {
    "vision_model.embeddings.class_embedding": (5,),
    "vision_model.encoder.layers.0.mlp.fc1.weight": (6, 4),
    "vision_model.encoder.layers.0.mlp.fc1.bias": (6,),
    "vision_model.encoder.layers.1.mlp.fc1.weight": (4, 7),
    "vision_model.encoder.layers.1.mlp.fc1.bias": (4,),
    "visual_projection.weight": (3, 5),
}


# Every shape a merge may meet: a single number, one row, one column, a convolution; and matrices nobody changed.
ODD_SHAPES = {
    "vision_model.embeddings.class_embedding": (5,),
    "vision_model.embeddings.scale": (),
    "vision_model.encoder.layers.0.mlp.fc1.weight": (6, 4),
    "vision_model.encoder.layers.0.mlp.one": (1,),
    "vision_model.encoder.layers.0.mlp.fc2.weight": (1, 1),
    "vision_model.encoder.layers.0.mlp.fc3.weight": (1, 4),
    "vision_model.encoder.layers.0.mlp.fc4.weight": (4, 1),
    "vision_model.encoder.layers.1.mlp.conv.weight": (2, 3, 2, 2),
    "vision_model.encoder.layers.1.mlp.frozen.weight": (3, 4),
    "visual_projection.weight": (3, 5),
}


@dataclass
class Quadratic:
    """ℓ_k(θ) = mean over samples of ½·Σ_p w_k,p·(θ_p − c_k,p − noise)²; the noise of all samples has mean zero.

    ``centres`` (K, P), ``weights`` (K, P) > 0, ``noise`` (N, P). The gradient is borrowed, as the protocol says.

    It is a probe as well: a linear feature extractor reads the first entries of θ, and is no part of the losses.
    """

    tasks: tuple[str, ...]
    centres: Tensor
    weights: Tensor
    noise: Tensor
    shapes: dict[str, tuple[int, ...]]
    calls: int = 0

    def __post_init__(self) -> None:
        self.buffer = torch.empty_like(self.centres[0])

    def _evaluate(
        self, theta: Tensor, tasks: Sequence[str] | None, batch_size: int | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        losses, gradient = [], torch.zeros_like(theta)
        for task in tasks or self.tasks:
            k = self.tasks.index(task)
            if batch_size is None:
                noise = self.noise
            else:
                noise = self.noise[torch.randint(len(self.noise), (batch_size,), generator=generator)]
            errors = theta - self.centres[k] - noise
            losses.append(0.5 * (self.weights[k] * errors.square()).sum(dim=1).mean())
            gradient += self.weights[k] * errors.mean(dim=0)
        return torch.stack(losses), gradient / len(losses)

    def losses(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self._evaluate(theta, tasks, batch_size, generator)[0]

    def gradient(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        losses, gradient = self._evaluate(theta, tasks, batch_size, generator)
        self.buffer.copy_(gradient)
        return losses, self.buffer

    def _inputs(self, task: str, unlabelled: bool, count: int | None, generator: torch.Generator | None) -> Tensor:
        """(N, WIDTH), around a direction of the task's own."""
        k = self.tasks.index(task)
        draws = torch.Generator().manual_seed(100 + 10 * k + unlabelled)
        inputs = torch.randn(INPUTS, WIDTH, generator=draws) + 3 * torch.eye(WIDTH)[k % WIDTH]
        return inputs if count is None else inputs[torch.randperm(INPUTS, generator=generator)[:count]]

    def features(
        self,
        theta: Tensor,
        task: str,
        *,
        unlabelled: bool = False,
        count: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        inputs = self._inputs(task, unlabelled, count, generator)
        return torch.nn.functional.normalize(inputs + 0.3 * theta[:WIDTH], dim=-1)

    def labels(self, task: str) -> Tensor:
        return torch.arange(INPUTS) % 3

    def head(self, task: str) -> Tensor:
        return 5 * torch.eye(WIDTH)[:3]

    def squared_gradients(
        self,
        theta: Tensor,
        task: str,
        *,
        count: int | None = None,
        passes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        k = self.tasks.index(task)
        return (self.weights[k] * (theta - self.centres[k] - self.noise)).square().mean(dim=0)

    def input_grams(
        self, theta: Tensor, task: str, *, count: int | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        grams = {}
        for j, (name, shape) in enumerate(self.shapes.items()):
            if len(shape) == 2:
                draws = torch.Generator().manual_seed(1000 + 10 * self.tasks.index(task) + j)
                inputs = torch.randn(2 * shape[1], shape[1], generator=draws) + theta[j]
                grams[name] = inputs.T @ inputs
        return grams


@dataclass
class Cliff(Quadratic):
    """The same up to the distance ``edge`` from ``centre`` (P,); further out losses are ``beyond``, gradients NaN."""

    centre: Tensor | None = None
    edge: float = 1.0
    beyond: float = float("nan")

    def _evaluate(
        self, theta: Tensor, tasks: Sequence[str] | None, batch_size: int | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        losses, gradient = super()._evaluate(theta, tasks, batch_size, generator)
        assert self.centre is not None
        if float((theta - self.centre).norm()) > self.edge:
            return torch.full_like(losses, self.beyond), torch.full_like(gradient, torch.nan)
        return losses, gradient


def beside_a_cliff(problem: Problem, edge: float, beyond: float) -> Problem:
    """The problem with an objective that is finite only up to the distance ``edge`` from the base."""
    plain: Any = problem.objective
    facts = {name: getattr(plain, name) for name in ("tasks", "centres", "weights", "noise", "shapes")}
    return replace(problem, objective=Cliff(**facts, centre=problem.vectors.base, edge=edge, beyond=beyond))


def toy_layout() -> ParamLayout:
    """Four layers, six tensors, 82 parameters."""
    return build_layout(SHAPES)


def toy_vectors(n: int = 5, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> ResidentTaskVectors:
    """n random task vectors around a random base."""
    layout, generator = build_layout(shapes), torch.Generator().manual_seed(seed)
    base = torch.randn(layout.size, generator=generator)
    matrix = 0.5 * torch.randn(n, layout.size, generator=generator)
    return ResidentTaskVectors(layout, tuple(f"c{i}" for i in range(n)), base, matrix)


def toy_problem(
    n: int = 5,
    tasks: int = 3,
    seed: int = 0,
    mixture: Tensor | None = None,
    noise: float = 0.0,
    reach: float = 0.8,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> Problem:
    """Task k is solved best near checkpoint k; with ``mixture`` (n,) all tasks are solved exactly there instead."""
    vectors = toy_vectors(n, seed, shapes)
    generator = torch.Generator().manual_seed(seed + 1)
    size = vectors.layout.size
    if mixture is None:
        centres = vectors.base + reach * vectors.matrix[:tasks] + 0.1 * torch.randn(tasks, size, generator=generator)
    else:
        centres = (vectors.base + mixture @ vectors.matrix).expand(tasks, size).clone()
    weights = 0.5 + torch.rand(tasks, size, generator=generator)
    samples = noise * torch.randn(32, size, generator=generator)
    names = tuple(f"t{k}" for k in range(tasks))
    objective = Quadratic(names, centres, weights, samples - samples.mean(dim=0), shapes)
    return Problem(vectors, objective, seed)


def odd_problem() -> Problem:
    """Tensors of every shape, one of which nobody changed; of five checkpoints one is the base and two are equal."""
    problem = toy_problem(noise=0.5, shapes=ODD_SHAPES)
    vectors: Any = problem.vectors
    vectors.matrix[1] = 0.0
    vectors.matrix[3] = vectors.matrix[2]
    for tau in vectors.matrix:
        vectors.layout.view(tau, "vision_model.encoder.layers.1.mlp.frozen.weight").zero_()
    return problem
