"""The loss on a plane through real models, coarse at first and finer as it goes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from fwviz.lenses import _field as field
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.plane import BASE, Plane, plane_through, random_plane
from fwviz.types import FwvizError, Split, TaskVectors

RANDOM = "random"
COLUMNS = (
    "series",
    "model",
    "model_title",
    "x",
    "y",
    "column",
    "row",
    "stride",
    "task",
    "loss",
    "accuracy",
    "samples",
    "high_pass",
)


@lens("Loss landscape", question="What does the loss look like between the models?")
def landscape(
    assembly: Assembly,
    theta: Tensor | None = None,
    *,
    models: str = "",
    task: str = "",
    split: Split = "validation",
    samples: int = 64,
    resolution: int = 21,
    margin: float = 0.35,
    high_pass: float = 0.0,
    draw: int = 0,
) -> Iterator[pd.DataFrame]:
    """ℓ(origin + x·u + y·v) and accuracy on an adaptive grid of the plane through three models; u, v orthonormal.

    Args:
        assembly: the opened recipe.
        theta: with random directions, the weights (P,) they start from; None is the base.
        models: three names, comma between them, each "base" or a checkpoint, the first at (0, 0) and the second on the
            x axis; "random" for two filter-normalised random directions instead (Li et al., 2018); "" is the base and
            the first two checkpoints.
        task: one task; "" measures every task of the recipe and their mean, "joint".
        split: validation, or calibration, which is what methods with labels go down.
        samples: at most that many of each task.
        resolution: grid points along each side.
        margin: of the picture around the models, as a share of their extent.
        high_pass: keep of every matrix of the task vectors only frequencies of at least this radius in [0, 1]
            (FREE-Merging, eq. 1–2); 0 leaves them as they are.
        draw: which random directions.

    Yields a table of all points measured so far, first of nested coarse grids, then where the loss changes most; see
    :mod:`fwviz.lenses._field` for ``attrs``. One row per point × task: ``series`` ("corner": a model of the plane,
    "grid"), ``model`` and ``model_title`` (corners only), ``x``, ``y`` (distance in weights, L2), ``column``, ``row``
    (on the grid from 0; corners −1), ``stride`` (grid steps to the next point of its level), ``task``, ``loss``
    (nats), ``accuracy`` in [0, 1], ``samples``, ``high_pass``.
    """
    if not 2 <= resolution <= 201:
        raise FwvizError(f"resolution is {resolution}, but must lie between 2 and 201 points a side.")
    if not 0.0 <= margin <= 10.0:
        raise FwvizError(f"margin is {margin:g}, but must lie between 0 and 10 times the extent of the models.")
    measure = field.judge(assembly, task, split, samples)
    plane = plane_of(assembly, theta, models, draw, high_pass)
    yield from survey(plane, measure, resolution, margin, field.model_titles(assembly, list(plane.corners)), high_pass)


def plane_of(
    assembly: Assembly,
    theta: Tensor | None = None,
    models: str = "",
    draw: int = 0,
    high_pass: float = 0.0,
    vectors: TaskVectors | None = None,
) -> Plane:
    """The plane that :func:`landscape` draws; ``vectors`` are those of the recipe unless given."""
    vectors = assembly.problem.vectors if vectors is None else vectors
    if models == RANDOM:
        if high_pass > 0.0:
            raise FwvizError("random directions are not made of task vectors, so there is nothing to filter: set 0.")
        origin = vectors.base if theta is None else theta.to(vectors.base.device)
        return random_plane(vectors.layout, origin.float(), draw)
    names = field.three(models, vectors, (BASE, *assembly.problem.vectors.names[:2]))
    return plane_through(field.filtered(vectors, names, high_pass), names)


def survey(
    plane: Plane,
    measure: field.Measure,
    resolution: int,
    margin: float,
    titles: dict[str, str],
    high_pass: float = 0.0,
) -> Iterator[pd.DataFrame]:
    """The tables of :func:`landscape` for any plane and any measure of a point."""
    steps = resolution - 1
    left, low, side = window(plane, margin)
    step = side / steps
    corners = plane.corners or {BASE: (0.0, 0.0)}
    growing = field.Growing(COLUMNS, resolution**2 + len(corners))
    buffer = torch.empty_like(plane.origin)
    blank = {"high_pass": high_pass, "model": "", "model_title": ""}
    for name, (x, y) in corners.items():
        place = {"series": "corner", "model": name, "model_title": titles.get(name, name), "x": x, "y": y}
        growing.add(blank | place | {"column": -1, "row": -1, "stride": 0}, measure(plane.point(x, y, buffer)))

    seen: dict[tuple[int, int], float] = {}
    grids = {
        stride: [(i, j) for j in range(0, resolution, stride) for i in range(0, resolution, stride)]
        for stride in field.strides(steps)
    }
    for (column, row), stride in field.refine(grids.__getitem__, steps, seen.get):
        x, y = left + column * step, low + row * step
        scores = measure(plane.point(x, y, buffer))
        place = {"series": "grid", "x": x, "y": y, "column": column, "row": row, "stride": stride}
        growing.add(blank | place, scores)
        mean = sum(score.loss for score in scores.values()) / len(scores)
        seen[column, row] = math.log(max(mean, 1e-9)) if math.isfinite(mean) else math.inf
        if growing.due():
            yield growing.table()
    yield growing.table()


def window(plane: Plane, margin: float) -> tuple[float, float, float]:
    """(left, bottom, side) of the square picture around the models of a plane; one unit around a plane without."""
    if not plane.corners:
        return -plane.unit, -plane.unit, 2.0 * plane.unit
    xs, ys = zip(*plane.corners.values(), strict=True)
    side = max(max(xs) - min(xs), max(ys) - min(ys)) * (1.0 + 2.0 * margin)
    return (max(xs) + min(xs) - side) / 2, (max(ys) + min(ys) - side) / 2, side
