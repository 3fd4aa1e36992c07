"""Runs on the triangle of three checkpoints, and the recipes of runs worth drawing there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from fwviz.lenses import _field as field
from fwviz.lenses._places import locate_runs, with_checkpoints_of
from fwviz.lenses.simplex import triangle
from fwviz.pools.open import open_pool
from fwviz.registry import describe_settings, entries, lens
from fwviz.runs.assemble import Assembly
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace
from fwviz.space.plane import Plane
from fwviz.types import FwvizError

COLUMNS = (
    "series",
    "run",
    "label",
    "method",
    "t",
    "lambda_1",
    "lambda_2",
    "lambda_3",
    "outside",
    "out_of_plane",
    "task",
    "loss",
    "accuracy",
    "final",
)

METHODS = ("fw_hard", "fw_soft", "task_arithmetic", "weight_average", "adamerging")
# What keeps a run near the triangle and short; each method takes what it knows.
WANTED: dict[str, Any] = {"granularity": "model", "coefficient_granularity": "model", "max_steps": 6}


@lens("Runs on the triangle", question="How does each method travel between three checkpoints?")
def simplex_paths(assembly: Assembly, traces: Sequence[Trace] = (), *, models: str = "") -> pd.DataFrame:
    """The foot of every iterate on the plane of three checkpoints, in barycentric coordinates.

    θ_t is projected at right angles: its foot is λ₁θ₁ + λ₂θ₂ + λ₃θ₃ with Σλ = 1, where a λ below 0 lies outside the
    triangle. Coefficients that do not add up to 1, or differ between layers, leave the plane; how far is said by
    ``out_of_plane``, the distance from the plane as a share of the base's: 1 at the base, 0 on the triangle, |1 − Σλ|
    for model-wise coefficients.

    Args:
        assembly: the opened recipe, whose pool the runs must be of.
        traces: recorded runs; those that merge other checkpoints than these three are left out.
        models: as given to ``simplex``.

    Returns the base (``series`` "model"), and one row per iterate of a linear merge (``series`` "path"): ``run`` (id),
    ``label``, ``method``, ``t``, ``lambda_1``, ``lambda_2``, ``lambda_3``, ``outside`` (L2 distance from the plane),
    ``out_of_plane``, ``task`` ("joint"), ``loss`` (nats) and ``accuracy`` (means over the recipe's tasks, as measured
    during the run on 64 validation samples a task; NaN if it was not judged on all of them), ``final``.
    """
    plane = triangle(assembly, models)
    among = set(plane.corners)
    chosen = [trace for trace in traces if set(trace.checkpoints) <= among]
    places = list(locate_runs(assembly, plane, with_checkpoints_of(assembly, chosen), chosen, rerun=False))
    height = places[0].place.outside  # the base comes first
    rows = []
    for item in places:
        if item.frame is None and item is not places[0]:
            continue
        shares = barycentric(plane, item.place.x, item.place.y)
        rows.append(
            {
                "series": "path" if item.frame else "model",
                "run": item.trace_id,
                "label": item.name,
                "method": item.method,
                "t": float(item.frame.t) if item.frame else math.nan,
                **{f"lambda_{k}": share for k, share in enumerate(shares, 1)},
                "outside": item.place.outside,
                "out_of_plane": item.place.outside / height if height > 0.0 else math.nan,
                "task": field.JOINT,
                "loss": item.loss,
                "accuracy": item.accuracy,
                "final": item.final,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def barycentric(plane: Plane, x: float, y: float) -> tuple[float, float, float]:
    """(λ₁, λ₂, λ₃), sum 1, of a point of the plane through three corners."""
    places = list(plane.corners.values())
    system = torch.tensor([[px, py, 1.0] for px, py in places], dtype=torch.float64).T
    first, second, third = torch.linalg.solve(system, torch.tensor([x, y, 1.0], dtype=torch.float64)).tolist()
    return first, second, third


def simplex_recipes(recipe: Recipe, three: Sequence[str]) -> list[Recipe]:
    """Short runs worth drawing on the triangle of three checkpoints, judged on the tasks they were fine-tuned on.

    Model-wise coefficients, as far as a method has them, so that a run leaves the triangle only by Σλ ≠ 1. Methods that
    are not installed are left out. Raises FwvizError unless ``three`` are three checkpoints of the pool.
    """
    if len(three) != 3 or len(set(three)) < 3:
        raise FwvizError(f"a triangle needs three different checkpoints, but this is {', '.join(three) or 'none'}.")
    card = open_pool(recipe.pool).card
    known = {task.id for task in card.tasks}
    tasks = tuple(dict.fromkeys(t for t in (card.checkpoint(name).task for name in three) if t in known))
    shared = replace(recipe, checkpoints=tuple(three), tasks=tasks or recipe.tasks)
    found = []
    for method in METHODS:
        if method in entries("methods"):
            values = {**shared.to_dict(), "method": method, "settings": _wanted(method)}
            found.append(Recipe.from_dict(values, card))
    return found


def _wanted(method: str) -> dict[str, Any]:
    cls = entries("methods")[method].settings
    settings = {}
    for spec in describe_settings(cls) if cls else ():
        value = WANTED.get(spec.name)
        if value is not None and (not spec.choices or value in spec.choices):
            settings[spec.name] = value
    return settings
