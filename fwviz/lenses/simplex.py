"""The loss on the triangle of three checkpoints: all their convex combinations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
import torch

from fwviz.lenses import _field as field
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.plane import BASE, Plane, plane_through
from fwviz.types import FwvizError, Split

COLUMNS = (
    "series",
    "model",
    "model_title",
    "lambda_1",
    "lambda_2",
    "lambda_3",
    "column",
    "row",
    "stride",
    "task",
    "loss",
    "accuracy",
    "samples",
)


@lens("Triangle of three checkpoints", question="Which mix of three checkpoints is best?")
def simplex(
    assembly: Assembly,
    *,
    models: str = "",
    task: str = "",
    split: Split = "validation",
    samples: int = 64,
    steps: int = 12,
) -> Iterator[pd.DataFrame]:
    """ℓ(λ₁θ₁ + λ₂θ₂ + λ₃θ₃) and accuracy on a grid of the triangle {λ ≥ 0, Σλ = 1}, coarse at first.

    The triangle is the face of Frank–Wolfe's hull that lies opposite the base. The base itself (Σλ = 0) is no point of
    it and is not drawn as its tip: a triangle with the base at a corner would show the mixes of two checkpoints only,
    which is what ``landscape`` is for.

    Args:
        assembly: the opened recipe.
        models: three checkpoints, comma between them; "" is the first three.
        task: one task; "" measures every task of the recipe and their mean, "joint".
        split: validation, or calibration, which is what methods with labels go down.
        samples: at most that many of each task.
        steps: grid steps along each side.

    Yields a table of all points so far. One row per point × task: ``series`` ("corner": a checkpoint, "grid"),
    ``model`` and ``model_title`` (corners only), ``lambda_1``, ``lambda_2``, ``lambda_3`` (≥ 0, sum 1), ``column``,
    ``row`` (steps of λ₂ and λ₃; corners −1), ``stride`` (grid steps to the next point of its level), ``task``, ``loss``
    (nats), ``accuracy`` in [0, 1], ``samples``.
    """
    if not 1 <= steps <= 100:
        raise FwvizError(f"steps is {steps}, but must lie between 1 and 100 along a side.")
    measure = field.judge(assembly, task, split, samples)
    plane = triangle(assembly, models)
    yield from survey(plane, measure, steps, field.model_titles(assembly, list(plane.corners)))


def triangle(assembly: Assembly, models: str = "") -> Plane:
    """The plane through the three checkpoints that :func:`simplex` mixes."""
    vectors = assembly.problem.vectors
    names = field.three(models, vectors, vectors.names[:3])
    if BASE in names or len(names) != 3:
        raise FwvizError(f"a triangle needs three checkpoints, but this is {', '.join(names)}.")
    return plane_through(vectors, names)


def survey(plane: Plane, measure: field.Measure, steps: int, titles: dict[str, str]) -> Iterator[pd.DataFrame]:
    """The tables of :func:`simplex` for any plane with three corners and any measure of a point."""
    corners = list(plane.corners.items())
    growing = field.Growing(COLUMNS, (steps + 1) * (steps + 2) // 2)
    buffer = torch.empty_like(plane.origin)
    seen: dict[tuple[int, int], float] = {}
    grids = {
        stride: [(i, j) for j in range(0, steps + 1, stride) for i in range(0, steps + 1 - j, stride)]
        for stride in field.strides(steps)
    }
    for (i, j), stride in field.refine(grids.__getitem__, steps, seen.get):
        shares = ((steps - i - j) / steps, i / steps, j / steps)
        x, y = (math.fsum(s * place[axis] for s, (_, place) in zip(shares, corners, strict=True)) for axis in (0, 1))
        scores = measure(plane.point(x, y, buffer))
        mixed = {f"lambda_{k}": share for k, share in enumerate(shares, 1)}
        if max(shares) == 1.0:
            name = corners[shares.index(1.0)][0]
            named = {"series": "corner", "model": name, "model_title": titles.get(name, name), "stride": 0}
            growing.add(mixed | named | {"column": -1, "row": -1}, scores)
            growing.done -= 1  # the same point as the one of the grid
        blank = {"series": "grid", "model": "", "model_title": "", "column": i, "row": j, "stride": stride}
        growing.add(mixed | blank, scores)
        mean = math.fsum(score.loss for score in scores.values()) / len(scores)
        seen[i, j] = math.log(max(mean, 1e-9)) if math.isfinite(mean) else math.inf
        if growing.due():
            yield growing.table()
    yield growing.table()
