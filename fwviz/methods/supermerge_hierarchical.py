"""Hierarchical SuperMerge: similar checkpoints first, few at a time, then what came out of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz import solver
from fwviz.methods._learning import BATCH_HELP, free, linear_step
from fwviz.methods.supermerge import (
    GRANULARITY_HELP,
    INIT_HELP,
    INITS,
    TANH_HELP,
    anneal_setting,
    decay_setting,
    first_weight,
    parametrisation,
    rate_setting,
)
from fwviz.registry import merge_method, setting
from fwviz.space.similarity import cosine, similar_groups
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.space.wide import minus
from fwviz.types import GRANULARITIES, Granularity, Groups, Problem, Status, Step, TaskVectors


@dataclass(frozen=True)
class Settings:
    """Settings of hierarchical SuperMerge; those of a node are SuperMerge's."""

    arity: int = setting(
        2,
        "Models merged at once, which is what memory holds; 2 is what the memory in the paper's table 5 implies.",
        low=2,
        high=32,
    )
    grouping: str = setting(
        "similarity",
        "Which models merge first: those with the most similar task vectors (cosine, average linkage), or neighbours "
        "in the order given.",
        choices=("similarity", "order"),
    )
    granularity: Granularity = setting("tensor", GRANULARITY_HELP, choices=GRANULARITIES)
    tanh: bool = setting(True, TANH_HELP)
    init: str = setting("base", INIT_HELP, choices=INITS)
    init_scale: float = setting(
        0.3,
        "Coefficient of every model of a node at the start.",
        low=0.0,
        high=0.99,
        applies={"init": ("task_arithmetic",)},
    )
    updates: int = setting(40, "Updates of the coefficients per node of the tree.", low=1, high=5000)
    batch_size: int = setting(16, BATCH_HELP, low=0, high=1024)
    learning_rate: float = rate_setting()
    weight_decay: float = decay_setting()
    anneal: bool = anneal_setting()


@merge_method(
    "SuperMerge, hierarchical",
    Settings,
    data="labels",
    paper="SuperMerge",
    reference="Yang et al., 2024, arXiv:2412.10416, section 5",
)
def supermerge_hierarchical(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Merge similar checkpoints by SuperMerge, then the results, level by level, until one model is left.

    A node with children c learns θ(j) = θ₀(j) + Σ_c tanh(w[j, c])·τ_c(j) on the calibration data of the tasks its own
    checkpoints were fine-tuned on (of all tasks if none is known). Its task vector is linear in those of the
    checkpoints, Λ[j, i] = Σ_c tanh(w[j, c])·Λ_c[j, i], so the whole tree ends in one λ (G, n), and cosines between
    results follow from the gram matrix of the checkpoints.

    Memory: the task vectors of ``arity`` models, one θ and one gradient, whatever n is; streamed checkpoints are read
    once per level, not at every update.

    Args: ``problem``, ``settings``. Yields t = 0 at the base, then the updates of each node (inner > 0, the loss that
    of the node's own tasks) and each finished node, breadth-first from the leaves, with the loss over all tasks.
    Reference: Yang et al. (2024), SuperMerge, arXiv:2412.10416, section 5 and figure 4.
    """
    vectors, groups = problem.vectors, problem.groups(settings.granularity)
    theta = torch.empty_like(vectors.base, dtype=torch.float32)

    def completed(rows: Tensor, t: int, note: str, status: Status = "running") -> Step:
        vectors.combine(rows.float(), groups, out=theta)
        loss = float(problem.objective.losses(theta).mean())
        return linear_step(
            groups, rows, t=t, loss=loss, note=f"{note}; calibration loss of all tasks {loss:.3f}", status=status
        )

    base = torch.zeros(len(groups), vectors.n, dtype=torch.float64)
    yield linear_step(groups, base, t=0, inner=1, note="initial solution: the base")
    yield completed(base, 0, "initial solution: the base")
    gram = vectors.gram(groups)
    held = _Held(vectors, groups, settings.arity)
    # By name, so that the order of a pool changes nothing where nobody asked for it.
    order = sorted(range(vectors.n), key=vectors.names.__getitem__)
    level = [_Model.leaf(i, base) for i in (range(vectors.n) if settings.grouping == "order" else order)]
    t = 0
    while True:
        above: list[_Model] = []
        for children in _siblings(level, settings, gram):
            if len(children) == 1 and len(level) > 1:
                above += children  # waits for the next level
                continue
            t += 1
            node, note = yield from _merge(problem, settings, groups, held, children, theta, t)
            root = len(children) == len(level)
            yield completed(node.coefficients, t, note, "max_steps" if root else "running")
            above.append(node)
        level = above
        if len(level) == 1:
            return


@dataclass(frozen=True)
class _Model:
    """A model of the tree: its coefficients (G, n) over the checkpoints, and those it was made of."""

    coefficients: Tensor
    leaves: tuple[int, ...]

    @classmethod
    def leaf(cls, i: int, base: Tensor) -> _Model:
        """Checkpoint i itself; ``base`` is the zero matrix (G, n)."""
        rows = base.clone()
        rows[:, i] = 1.0
        return cls(rows, (i,))


class _Held:
    """The task vectors of the models of one node, at most ``arity``, in one buffer that all nodes share."""

    def __init__(self, vectors: TaskVectors, groups: Groups, arity: int) -> None:
        self._vectors, self._groups, self._arity = vectors, groups, arity
        self._buffer: Tensor | None = None

    def of(self, models: Sequence[_Model]) -> TaskVectors:
        """Valid until the next call. Checkpoints that lie in memory already are not copied."""
        vectors = self._vectors
        if isinstance(vectors, ResidentTaskVectors) and all(len(model.leaves) == 1 for model in models):
            return vectors.subset([model.leaves[0] for model in models])
        if self._buffer is None:
            count = min(self._arity, vectors.n)
            self._buffer = torch.empty(count, vectors.layout.size, device=vectors.base.device)
        matrix = self._buffer[: len(models)]
        for row, model in zip(matrix, models, strict=True):
            minus(vectors.combine(model.coefficients.float(), self._groups, out=row), vectors.base, row)
        names = [_title([vectors.names[i] for i in model.leaves]) for model in models]
        return ResidentTaskVectors(vectors.layout, names, vectors.base, matrix)


def _title(names: Sequence[str]) -> str:
    return "+".join(names) if len(names) < 4 else f"{names[0]}+{len(names) - 1} others"


def _siblings(level: Sequence[_Model], settings: Settings, gram: Tensor) -> list[list[_Model]]:
    """The models of one level in groups of at most ``arity``."""
    if settings.grouping == "order":
        return [list(level[a : a + settings.arity]) for a in range(0, len(level), settings.arity)]
    rows = torch.stack([model.coefficients for model in level])
    products = torch.einsum("agi,gij,bgj->ab", rows, gram, rows)
    return [[level[i] for i in group] for group in similar_groups(cosine(products), settings.arity)]


def _merge(
    problem: Problem,
    settings: Settings,
    groups: Groups,
    held: _Held,
    children: Sequence[_Model],
    theta: Tensor,
    t: int,
) -> Generator[Step, None, tuple[_Model, str]]:
    """Learn one node, yielding its updates; returns it and what to say about it."""
    leaves = tuple(i for child in children for i in child.leaves)
    owned = {problem.owner(i) for i in leaves}
    tasks = [task for task in problem.objective.tasks if task in owned]
    vectors = held.of(children)
    landscape = solver.Landscape(
        parametrisation(settings.tanh).free(len(groups), len(children)),
        vectors,
        groups,
        problem.objective,
        "cross_entropy",
        theta,
        tasks or None,
    )
    rows = torch.stack([child.coefficients for child in children])

    def composed(weights: Tensor) -> Tensor:
        return torch.einsum("gc,cgn->gn", landscape.family.coefficients(weights), rows)

    first = first_weight(settings.init, settings.init_scale, settings.tanh)
    weights = torch.full((len(groups), len(children)), first, dtype=torch.float64)
    words = f"node {t}, {' with '.join(vectors.names)}"
    for progress in solver.adam(
        landscape,
        weights,
        free,
        updates=settings.updates,
        rate=settings.learning_rate,
        batch_size=settings.batch_size or None,
        generator=problem.generator(t),
        decay=settings.anneal,
        weight_decay=settings.weight_decay,
    ):
        weights = progress.weights
        yield linear_step(
            groups,
            composed(weights),
            t=t,
            inner=progress.update,
            loss=progress.loss,
            note=f"{words}, update {progress.update} of {settings.updates}: loss of the batch {progress.loss:.3f}",
        )
    found = _Model(composed(weights), leaves)
    return found, f"{words}, learnt on {', '.join(tasks) or 'all tasks, as its checkpoints own none'}"
