"""The loss on the straight way from one model to another, and the barrier between them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from fwviz.lenses import _field as field
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.plane import BASE
from fwviz.space.wide import dot
from fwviz.types import FwvizError, Split

MERGE = "merge"
COLUMNS = (
    "way",
    "start",
    "start_title",
    "end",
    "end_title",
    "length",
    "task",
    "gamma",
    "loss",
    "accuracy",
    "samples",
    "chord",
    "above",
    "barrier",
)


@lens("Between two models", question="Is there a hill between two models?")
def interpolation(
    assembly: Assembly,
    theta: Tensor | None = None,
    *,
    start: str = BASE,
    end: str = "",
    task: str = "",
    split: Split = "validation",
    samples: int = 64,
    points: int = 21,
    backbone: bool = False,
) -> Iterator[pd.DataFrame]:
    """ℓ((1 − γ)·θ_start + γ·θ_end) and accuracy for γ ∈ [0, 1], coarse at first.

    Args:
        assembly: the opened recipe.
        theta: what "merge" stands for: merged weights (P,).
        start, end: each "base", "merge" or a checkpoint; "" ends at the merge if ``theta`` is given, else at the first
            checkpoint.
        task: one task; "" measures every task of the recipe and their mean, "joint".
        split: validation, or calibration, which is what methods with labels go down.
        samples: at most that many of each task.
        points: of the way, both ends among them.
        backbone: "merge" is the backbone of a merge with parts beside it (experts, masks), and is named so: no straight
            way leads to the parts, and nothing on this one is judged with them.

    Yields a table of all points so far, both ends first. One row per task × γ: ``way`` ("start → end"), ``start``,
    ``start_title``, ``end``, ``end_title``, ``length`` (L2 distance of the ends), ``task``, ``task_title``, ``gamma``,
    ``loss`` (nats), ``accuracy`` in [0, 1], ``samples``, ``chord`` = (1 − γ)·ℓ(0) + γ·ℓ(1), ``above`` = loss − chord,
    ``barrier`` of the task = max over γ of ``above`` (nats): 0 on the way of a convex loss, whose chord lies above it.
    Source: the error barrier of Frankle et al. (2020), Linear Mode Connectivity, with the chord of Entezari et al.
    (2022) in place of the mean of the ends.
    """
    if not 2 <= points <= 1001:
        raise FwvizError(f"points is {points}, but must lie between 2 and 1001.")
    vectors = assembly.problem.vectors
    end = end or (vectors.names[0] if theta is None else MERGE)
    if start == end:
        raise FwvizError(f"the way from {start!r} to itself has no length: choose another end.")
    ends = []
    for name in (start, end):
        if name == MERGE:
            if theta is None:
                raise FwvizError("there is no merged model to start or end at: give the weights of a run.")
            ends.append(theta.to(vectors.base.device, torch.float32))
        else:
            i = None if field.known(name, vectors) == BASE else vectors.names.index(name)
            ends.append(vectors.base.float() if i is None else vectors.vector(i).add_(vectors.base))
    titles = field.model_titles(assembly, [name for name in (start, end) if name in vectors.names])
    titles |= {MERGE: "backbone of the merge, without its parts"} if backbone else {}
    named = {"way": f"{start} → {end}", "start": start, "start_title": titles[start]}
    named |= {"end": end, "end_title": titles[end]}
    tasks = {"joint": "all tasks together"} | names.task_titles(assembly.recipe.tasks, assembly.pool.card)
    for table in survey(ends[0], ends[1], field.judge(assembly, task, split, samples), points, named):
        table.insert(table.columns.get_loc("task") + 1, "task_title", table["task"].map(tasks))
        yield table


def survey(
    first: Tensor, last: Tensor, measure: field.Measure, points: int, named: dict[str, str]
) -> Iterator[pd.DataFrame]:
    """The tables of :func:`interpolation` between any two weights (P,) and for any measure."""
    direction = last - first
    length = math.sqrt(dot(direction, direction))
    buffer = torch.empty_like(first)
    growing = field.Growing(COLUMNS, points)
    steps = points - 1
    seen: dict[tuple[int, int], float] = {}
    grids = {stride: [(i, 0) for i in range(0, points, stride)] for stride in field.strides(steps)}
    for (i, _), _stride in field.refine(grids.__getitem__, steps, seen.get):
        gamma = i / steps
        scores = measure(torch.add(first, direction, alpha=gamma, out=buffer))
        growing.add({**named, "length": length, "gamma": gamma}, scores)
        mean = math.fsum(score.loss for score in scores.values()) / len(scores)
        seen[i, 0] = mean if math.isfinite(mean) else math.inf
        if growing.due() and growing.done > 2:
            yield _with_chords(growing.table())
    yield _with_chords(growing.table())


def _with_chords(table: pd.DataFrame) -> pd.DataFrame:
    """Chord, height above it and barrier of every task, once both ends are there."""
    ordered = table.sort_values("gamma", kind="stable")
    by_task = ordered.groupby("task", sort=False)["loss"]
    first, last = by_task.transform("first"), by_task.transform("last")
    ordered["chord"] = (1 - ordered["gamma"]) * first + ordered["gamma"] * last
    ordered["above"] = ordered["loss"] - ordered["chord"]
    ordered["barrier"] = ordered.groupby("task", sort=False)["above"].transform("max")
    ordered["place"] = ordered["task"].map({task: k for k, task in enumerate(dict.fromkeys(table["task"]))})
    made = ordered.sort_values(["place", "gamma"], kind="stable").drop(columns="place").reset_index(drop=True)
    made.attrs = table.attrs
    return made[list(COLUMNS)]
