"""What the pictures of a loss share: models of a plane, measuring at many points, and tables that grow.

A lens that takes longer than a moment is a generator of whole tables, each with all rows so far and with
``table.attrs = {"done": …, "total": …}`` points measured. Closing the generator stops it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fwviz.lenses import _names as names
from fwviz.runs.assemble import Assembly
from fwviz.space.layout import unflatten
from fwviz.space.plane import BASE
from fwviz.space.spectrum import high_pass
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import FwvizError, Score, Split, TaskVectors

Measure = Callable[[Tensor], Mapping[str, Score]]

JOINT = "joint"
EVERY = 0.4  # seconds between two tables of a picture under way


# --- models ---------------------------------------------------------------------------------------


def three(given: str, vectors: TaskVectors, default: Sequence[str]) -> tuple[str, ...]:
    """The models named in "base,a,b", or ``default`` for ""; FwvizError unless each is the base or a checkpoint."""
    models = tuple(name.strip() for name in given.split(",")) if given else tuple(default)
    for name in models:
        known(name, vectors)
    return models


def known(name: str, vectors: TaskVectors) -> str:
    """``name`` itself; FwvizError unless it is the base or a checkpoint."""
    if name != BASE and name not in vectors.names:
        raise FwvizError(f"{name!r} is not merged here: choose base or one of {', '.join(vectors.names)}.")
    return name


def model_titles(assembly: Assembly, models: Sequence[str]) -> dict[str, str]:
    """Model → title."""
    return {BASE: "base", "merge": "merged model"} | names.checkpoint_titles(models, assembly.pool.card)


def filtered(vectors: TaskVectors, models: Sequence[str], cutoff: float) -> TaskVectors:
    """The checkpoints among ``models`` with the matrices of their task vectors high-passed; ``vectors`` for cutoff 0.

    Holds one (P,) float32 vector per model. FREE-Merging, eq. 1–2.
    """
    if cutoff <= 0.0:
        return vectors
    used = [vectors.names.index(name) for name in models if name != BASE]
    rows = torch.stack([vectors.vector(i) for i in used])
    for row in rows:
        for tensor in unflatten(vectors.layout, row).values():
            if tensor.dim() == 2:
                tensor.copy_(high_pass(tensor, cutoff))
    return ResidentTaskVectors(vectors.layout, [vectors.names[i] for i in used], vectors.base, rows)


# --- measuring ------------------------------------------------------------------------------------


def judge(assembly: Assembly, task: str, split: Split, samples: int) -> Measure:
    """θ → score per task, of one task or ("") of all the recipe's, on at most ``samples`` samples of a split each."""
    if task and task not in assembly.recipe.tasks:
        raise FwvizError(f"task {task!r} is not of this recipe: choose from {', '.join(assembly.recipe.tasks)}.")
    return assembly.evaluator.focused((task,) if task else assembly.recipe.tasks, split=split, count=samples).quick


def task_rows(scores: Mapping[str, Score]) -> list[dict[str, Any]]:
    """One row per task with loss (nats), accuracy and samples; with several tasks "joint", their mean, comes first."""
    rows: list[dict[str, Any]] = [
        {"task": t, "loss": s.loss, "accuracy": s.accuracy, "samples": s.count} for t, s in scores.items()
    ]
    if len(rows) > 1:
        means = {column: float(np.mean([row[column] for row in rows])) for column in ("loss", "accuracy")}
        rows.insert(0, {"task": JOINT, **means, "samples": sum(row["samples"] for row in rows)})
    return rows


@dataclass
class Growing:
    """Rows that become a table every now and then."""

    columns: Sequence[str]
    total: int
    done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    _shown: float = field(default_factory=time.perf_counter)

    def add(self, place: Mapping[str, Any], scores: Mapping[str, Score]) -> None:
        """The rows of one measured point."""
        self.rows += [{**place, **row} for row in task_rows(scores)]
        self.done += 1

    def due(self) -> bool:
        """Whether it is time to show the table."""
        return time.perf_counter() - self._shown >= EVERY

    def table(self) -> pd.DataFrame:
        """All rows so far."""
        table = pd.DataFrame(self.rows, columns=list(self.columns))
        table.attrs = {"done": self.done, "total": self.total}
        self._shown = time.perf_counter()
        return table


# --- the order of an adaptive grid ----------------------------------------------------------------


def strides(steps: int) -> list[int]:
    """Distances of nested grids from ``steps`` down to 1, divided by the largest primes first: 20 → 20, 4, 2, 1."""
    found, rest = [], steps
    prime = 2
    while rest > 1:
        if rest % prime:
            prime += 1
        else:
            found.append(prime)
            rest //= prime
    levels = [steps]
    for factor in reversed(found):
        levels.append(levels[-1] // factor)
    return levels


def refine(
    points: Callable[[int], Sequence[tuple[int, int]]], steps: int, value: Callable[[tuple[int, int]], float | None]
) -> Iterator[tuple[tuple[int, int], int]]:
    """(point, stride) of an adaptive grid, coarse grids first, in each the places first where the picture changes most.

    Args:
        points: stride → the points of that grid, each grid holding those of the coarser.
        steps: the coarsest stride.
        value: what was measured at a point, None if nothing was; read before each level.
    """
    levels = strides(steps)
    for above, stride in pairwise([2 * steps, *levels]):
        fresh = [point for point in points(stride) if value(point) is None]
        near = {point: seen for point in points(above) if (seen := value(point)) is not None} if above <= steps else {}
        spread = {point: _spread(point, near, above) for point in fresh}
        for point in sorted(fresh, key=lambda p: -spread[p]):
            yield point, stride


def _spread(point: tuple[int, int], near: Mapping[tuple[int, int], float], reach: int) -> float:
    """How far the values of the coarser grid around a point lie apart."""
    a, b = point
    lows = [(a // reach) * reach, (b // reach) * reach]
    seen = [near[p] for p in ((lows[0] + i, lows[1] + j) for i in (0, reach) for j in (0, reach)) if p in near]
    return max(seen) - min(seen) if seen else 0.0
