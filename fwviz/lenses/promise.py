"""How far the linear model can be trusted on the way to a vertex."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from fwviz.lenses import _names as names
from fwviz.lenses._slopes import moved, point
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.types import FwvizError, LossName

# Finer at the start, where the promise breaks.
GAMMAS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@lens("Promise and reality", question="How far along the way can the gradient be trusted?")
def promise(
    assembly: Assembly,
    theta: Tensor | None = None,
    *,
    vertex: str = "",
    stretch: float = 1.0,
    gammas: Sequence[float] = GAMMAS,
    loss: LossName = "cross_entropy",
) -> pd.DataFrame:
    """Promised γ·⟨∇ℓ(θ), s − θ⟩ against measured ℓ(θ + γ(s − θ)) − ℓ(θ), joint and per task.

    Args:
        assembly: the opened recipe.
        theta: where the way begins, (P,); None is the base.
        vertex: where it leads: a checkpoint, or "base"; "" takes the checkpoint with the lowest joint score.
        stretch: s = θ₀ + stretch·τ (1 is the checkpoint itself).
        gammas: shares of the way; 0 is always measured.

    Costs one backward pass per task and one loss over all tasks per γ, on all calibration samples.

    Returns one row per task × γ, "joint" (the mean over tasks) first: ``task``, ``task_title``, ``vertex``,
    ``vertex_title``, ``gamma``, ``promised`` and ``measured`` (change of loss, nats), ``difference`` (measured −
    promised), ``loss`` (nats).
    """
    problem, card, tasks = assembly.problem, assembly.pool.card, assembly.recipe.tasks
    vectors, objective = problem.vectors, problem.objective
    if vertex not in ("", "base", *vectors.names):
        raise FwvizError(f"vertex {vertex!r} is not merged here: choose base or one of {', '.join(vectors.names)}.")
    at, groups = point(problem, theta), problem.groups("model")
    start, products, anchors = [], [], []
    for task in tasks:
        losses, gradient = objective.gradient(at, tasks=[task], loss=loss)
        start.append(float(losses[0]))
        products.append(vectors.scores(gradient, groups)[0].double())
        anchors.append(float(moved(gradient, at, vectors.base, groups)[0]))
    joint = torch.stack(products).mean(dim=0)
    vertex = vertex or vectors.names[int(joint.argmin())]
    index = None if vertex == "base" else vectors.names.index(vertex)
    slope = [
        (0.0 if index is None else stretch * float(row[index])) - anchor
        for row, anchor in zip(products, anchors, strict=True)
    ]
    # One direction s − θ is built once; every point of the way is a single addition into one buffer.
    direction = vectors.base - at if index is None else vectors.vector(index).mul_(stretch).add_(vectors.base).sub_(at)
    buffer = torch.empty_like(direction)
    titles = {"joint": "all tasks together"} | names.task_titles(tasks, card)
    vertex_title = {"base": "base"} | names.checkpoint_titles(vectors.names, card)
    rows = []
    for gamma in sorted({0.0, *gammas}):
        values = start
        if gamma > 0.0:
            there = torch.add(at, direction, alpha=gamma, out=buffer)
            values = objective.losses(there, tasks=tasks, loss=loss).tolist()
        lines = [("joint", _mean(values), _mean(start), _mean(slope)), *zip(tasks, values, start, slope, strict=True)]
        for task, value, first, rate in lines:
            promised, measured = gamma * rate + 0.0, value - first  # + 0.0: no negative zero
            rows.append(
                {
                    "task": task,
                    "task_title": titles[task],
                    "vertex": vertex,
                    "vertex_title": vertex_title[vertex],
                    "gamma": gamma,
                    "promised": promised,
                    "measured": measured,
                    "difference": measured - promised,
                    "loss": value,
                }
            )
    return pd.DataFrame(rows)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
