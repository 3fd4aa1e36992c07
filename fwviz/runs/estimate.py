"""How long a run will take, judged by the one of the store that was most like it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fwviz.registry import describe_settings, entry
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunSummary

_FURTHEST = 4.0  # times as much or as little of anything: beyond that nothing is known


def expected_seconds(recipe: Recipe, earlier: Iterable[RunSummary]) -> float | None:
    """Seconds of the most similar run that came to its end, scaled to this recipe; None if there is none like it.

    Alike are runs of the same pool and method on the same device and in the same precision, whose settings differ in
    fractions (scales, rates) and in numbers of updates and iterations at most. Time is taken to grow with those and
    with the number of tasks; for methods that see no data half with checkpoints, half with tasks. ``earlier`` has the
    newest first.
    """
    same, amount = _kind(recipe), _updates(recipe)
    seen = [run for run in earlier if run.status in ("converged", "max_steps") and _kind(run.recipe) == same]
    best, found = math.inf, None
    for run in seen:
        tasks = len(recipe.tasks) / len(run.recipe.tasks)
        checkpoints = len(recipe.checkpoints) / len(run.recipe.checkpoints)
        updates = amount / _updates(run.recipe)
        ratios = [abs(math.log(ratio)) for ratio in (tasks, checkpoints, updates)]
        if sum(ratios) < best and max(ratios) <= math.log(_FURTHEST):
            best = sum(ratios)
            found = run.seconds * (tasks * updates if _sees_data(recipe) else (tasks + checkpoints) / 2)
    return found


def in_words(seconds: float) -> str:
    """A rough time: "about 3 s", "about 45 s", "about 4 min", "about 2 h"."""
    if seconds < 90:
        return f"about {max(round(seconds), 1) if seconds < 10 else 5 * round(seconds / 5)} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {round(seconds / 3600)} h"


def _kind(recipe: Recipe) -> tuple[Any, ...]:
    """What must be equal for the time of one run to say anything about another."""
    others = {name: value for name, value in _effective(recipe).items() if not _is_amount(name)}
    device = "cuda:0" if recipe.device == "cuda" else recipe.device
    return recipe.pool, recipe.method, device, recipe.precision, recipe.storage, recipe.dtype, others


def _updates(recipe: Recipe) -> int:
    """The product of all numbers of iterations and updates."""
    return math.prod(max(int(value), 1) for name, value in _effective(recipe).items() if _is_amount(name))


def _is_amount(name: str) -> bool:
    return name.endswith(("steps", "updates"))


def _effective(recipe: Recipe) -> Mapping[str, Any]:
    """The settings that decide how much is to be done: no fractions, none that the others leave without effect."""
    settings = recipe.method_settings()
    if settings is None:
        return {}
    values = asdict(settings)
    return {
        spec.name: values[spec.name]
        for spec in describe_settings(type(settings))
        if spec.kind is not float and all(values[other] in wanted for other, wanted in spec.applies.items())
    }


def _sees_data(recipe: Recipe) -> bool:
    return entry("methods", recipe.method).data_for(recipe.method_settings()) != "none"
