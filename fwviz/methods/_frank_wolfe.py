"""What hard and soft Frank–Wolfe merging share: the hull, and what one measurement at θ_t tells about it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fwviz.methods.adamerging import Settings as AdaMerging
from fwviz.methods.adamerging import adapt
from fwviz.space import simplex
from fwviz.space.simplex import parents, sum_groups
from fwviz.space.transformed import stretched
from fwviz.space.wide import dot
from fwviz.types import Groups, LossName, Objective, Problem, Step, TaskVectors

INITS = ("base", "average", "task_arithmetic", "adamerging")
SCORES = ("inner_product", "tensor_cosine")
EXTRA_VERTICES = ("base_initial", "initial", "none")

SCORE_HELP = (
    "What the oracle compares: the inner product of the gradient with each checkpoint (eq. 7), or, as the released "
    "code does, the sum over tensors of their cosines. Only the inner product makes the choice the gap certifies."
)
EXTRA_HELP = (
    "Vertices beside the checkpoints: the base and the initial solution (the paper's set), the initial solution "
    "only (the released FW-hard), or none (the released FW-soft)."
)
HULL_HELP = (
    "Stretch every checkpoint to base + s·task vector before taking the hull. Our extension: 1 is the paper's hull, "
    "more lets coefficients sum to s."
)
INIT_UPDATES_HELP = "Updates of AdaMerging, on unlabelled test inputs, that make the initial solution (released: 500)."
EPSILON_HELP = "Stop when the Frank–Wolfe gap, in nats of loss, is at most this."


def initial_solution(
    problem: Problem, groups: Groups, init: str, scale: float, updates: int
) -> Generator[Step, None, tuple[Tensor, int]]:
    """λ⁰ (G, n) in float64 and the number of Steps it took, returned; those are AdaMerging's, yielded at t = 0.

    The paper's vision runs start from AdaMerging's result, here with coefficients for ``groups``. It needs no label:
    its loss is the entropy on unlabelled inputs, whatever the loss of the run is, so its Steps report none.
    """
    rows, shown = initial_coefficients(init, scale, len(groups), problem.vectors.n), 0
    if init == "adamerging":
        for step in adapt(problem, AdaMerging(updates=updates), groups):
            assert step.coefficients is not None
            rows, shown = step.coefficients.double(), shown + 1
            note = f"initial solution by AdaMerging: {step.note}"
            yield replace(step, t=0, inner=shown, loss=None, status="running", note=note)
    return rows, shown


def initial_coefficients(init: str, scale: float, count: int, n: int) -> Tensor:
    """λ⁰ (count, n): zeros at the base, 1/n for the average, ``scale`` everywhere for task arithmetic.

    AdaMerging has no coefficients before it has run: its rows are zeros here.
    """
    value = {"base": 0.0, "average": 1.0 / n, "task_arithmetic": scale, "adamerging": 0.0}[init]
    return torch.full((count, n), value, dtype=torch.float64)


@dataclass(frozen=True)
class Hull:
    """The vertices of the search: n checkpoints (stretched by ``stretch``), then the extra ones in ``names``.

    A vertex is known by its coefficients, never by its weights. ``initial`` (G, n) is λ⁰ in float64.
    """

    vectors: TaskVectors
    groups: Groups
    initial: Tensor
    stretch: float
    extras: tuple[str, ...]

    @classmethod
    def build(cls, vectors: TaskVectors, groups: Groups, initial: Tensor, stretch: float, extra: str) -> Hull:
        """``extra`` is one of EXTRA_VERTICES; an initial solution that is the base is not listed twice."""
        extras = {"base_initial": ("base", "initial"), "initial": ("initial",), "none": ()}[extra]
        if extra == "base_initial" and not bool(initial.any()):
            extras = ("base",)
        return cls(vectors, groups, initial, stretch, extras)

    def holds(self, coefficients: Tensor, stretch: float = 1.0) -> bool:
        """Whether λ (G, n) lies in the hull of these vertices, with the checkpoints stretched by ``stretch``."""
        initial = self.initial / stretch if "initial" in self.extras else None
        return simplex.in_hull(coefficients / stretch, initial, base="base" in self.extras)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.vectors.names, *self.extras)

    def vertex(self, choice: Tensor) -> Tensor:
        """The coefficients (G, n) of vertex ``choice[g]`` in each group."""
        n = self.vectors.n
        rows = torch.zeros_like(self.initial)
        checkpoint = choice < n
        rows[checkpoint, choice[checkpoint]] = self.stretch
        if "initial" in self.extras:
            start = choice == n + self.extras.index("initial")
            rows[start] = self.initial[start]
        return rows

    def slopes(self, products: Tensor, anchor: Tensor) -> Tensor:
        """⟨∇_g, s_v − θ⟩ (G, V) from S (G, n) and ``anchor`` = ⟨∇_g, θ − θ₀⟩ (G,)."""
        reach = {"base": torch.zeros_like(anchor), "initial": (self.initial * products).sum(dim=1)}
        columns = [self.stretch * products, *(reach[name][:, None] for name in self.extras)]
        return torch.cat(columns, dim=1) - anchor[:, None]


@dataclass(frozen=True)
class Measurement:
    """The gradient at θ_t, seen from every vertex: ``losses`` (K,) in nats; ``slopes`` and ``ranks`` (G, V).

    ``slopes`` are ⟨∇_g, s_v − θ_t⟩ of the mean loss; ``ranks`` what the oracle compares: the slopes, or the cosines
    of the released code. ``per_task`` holds the ranks of each task's own gradient.
    """

    losses: Tensor
    slopes: Tensor
    ranks: Tensor
    per_task: dict[str, Tensor]

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    def scores(self, n: int) -> Tensor:
        """The ranks of the n checkpoints, (G, n), as a Step records them."""
        return self.ranks[:, :n].float()

    def task_scores(self, n: int) -> dict[str, Tensor]:
        return {task: ranks[:, :n].float() for task, ranks in self.per_task.items()}


def measure(
    hull: Hull,
    objective: Objective,
    theta: Tensor,
    coefficients: Tensor | None,
    *,
    loss: LossName,
    score: str,
    tasks: Sequence[str] | None,
) -> Measurement:
    """Losses, slopes towards every vertex and oracle scores at θ.

    With ``tasks`` each task's gradient is taken on its own and their mean is the joint one; with None there is one
    backward pass for all. ``coefficients`` (G, n) of θ where it is linear; ``theta`` (P,) is read only.
    """
    if tasks is None:
        losses, gradient = objective.gradient(theta, loss=loss)
        slopes = _slopes(hull, gradient, theta, coefficients)
        ranks = slopes if score == "inner_product" else _cosines(hull, gradient)
        return Measurement(losses, slopes, ranks, {})
    parts, slopes_of, ranks_of = [], [], []
    # The cosine with the joint gradient is not the mean of the tasks' cosines, so it needs the sum of the gradients.
    total = None if score == "inner_product" else torch.zeros_like(theta)
    for task in tasks:
        losses, gradient = objective.gradient(theta, tasks=(task,), loss=loss)
        parts.append(losses)
        slopes_of.append(_slopes(hull, gradient, theta, coefficients))
        ranks_of.append(slopes_of[-1] if total is None else _cosines(hull, gradient))
        if total is not None:
            total.add_(gradient)
    slopes = torch.stack(slopes_of).mean(dim=0)
    ranks = slopes if total is None else _cosines(hull, total)
    return Measurement(torch.cat(parts), slopes, ranks, dict(zip(tasks, ranks_of, strict=True)))


def _slopes(hull: Hull, gradient: Tensor, theta: Tensor, coefficients: Tensor | None) -> Tensor:
    """⟨∇_g, s_v − θ⟩ (G, V) for every vertex."""
    products = hull.vectors.scores(gradient, hull.groups).double()
    if coefficients is not None:
        return hull.slopes(products, (coefficients * products).sum(dim=1))
    base = hull.vectors.base
    anchor = [dot(gradient[a:b], theta[a:b] - base[a:b]) for a, b in hull.groups.ranges()]
    return hull.slopes(products, torch.tensor(anchor, dtype=torch.float64))


def _cosines(hull: Hull, gradient: Tensor) -> Tensor:
    """Σ over the tensors p of each group of cos(gradient_p, s_v,p) (G, V), raw weights as in the released code."""
    vertices = hull.vectors if hull.stretch == 1.0 else stretched(hull.vectors, hull.stretch)
    columns = [vertices.cosines(gradient, hull.groups).double()]
    tensors = hull.vectors.layout.groups("tensor")
    for name in hull.extras:
        rows = hull.initial if name == "initial" else torch.zeros_like(hull.initial)
        weights = hull.vectors.combine(rows.float(), hull.groups)
        values = torch.zeros(len(tensors), 1, dtype=torch.float64)
        for j, (a, b) in enumerate(tensors.ranges()):
            norms = gradient[a:b].norm() * weights[a:b].norm()
            if norms > 0:
                values[j] = float(torch.dot(gradient[a:b], weights[a:b]) / norms)
        columns.append(sum_groups(values, parents(tensors, hull.groups), len(hull.groups)))
    return torch.cat(columns, dim=1)


def percent(share: float) -> str:
    """A share in words: "12 %", "0.4 %", "under 0.1 %"."""
    hundredths = 100.0 * share
    if 0.0 < hundredths < 0.1:
        return "under 0.1 %"
    return f"{hundredths:.0f} %" if hundredths >= 9.95 else f"{hundredths:.1f} %"


def tally(names: Sequence[str], total: int, group: str) -> str:
    """Plain words for the choice of each group that moves: "mnist", or "mnist in 4 of 8 layers, svhn in 3"."""
    if total == 1 or not names:
        return names[0] if names else "any vertex"
    counts = sorted({name: names.count(name) for name in names}.items(), key=lambda item: -item[1])
    words = [f"{name} in {count}" for name, count in counts[:3]]
    words[0] += f" of {total} {group}s"
    more = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
    rest = f" ({total - len(names)} stay)" if len(names) < total else ""
    return ", ".join(words) + more + rest
