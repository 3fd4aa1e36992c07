"""Coefficients changed by hand: the merge rebuilt and judged at once, and its recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fwviz.runs.assemble import Assembly
from fwviz.runs.recipe import GIVEN, Recipe
from fwviz.space.simplex import parents
from fwviz.types import FwvizError, Granularity, ParamLayout, Score


@dataclass(frozen=True)
class Edit:
    """A merge by hand: its recipe, its quick scores per task (validation), and what rebuilding and judging took."""

    recipe: Recipe
    scores: dict[str, Score]
    rebuild_seconds: float
    evaluation_seconds: float

    @property
    def mean_accuracy(self) -> float:
        """In [0, 1]."""
        return sum(score.accuracy for score in self.scores.values()) / len(self.scores)


def edited_recipe(recipe: Recipe, granularity: Granularity, coefficients: Tensor | Sequence[Sequence[float]]) -> Recipe:
    """The recipe that merges the same checkpoints for the same tasks with these coefficients (G, n).

    Raises FwvizError if they are not finite, too large, or not one column per checkpoint.
    """
    rows = coefficients.tolist() if isinstance(coefficients, Tensor) else [list(row) for row in coefficients]
    values = recipe.to_dict() | {"method": GIVEN, "settings": {}}
    return Recipe.from_dict(values | {"coefficients": {"granularity": granularity, "values": rows}})


def edited(
    assembly: Assembly,
    granularity: Granularity,
    coefficients: Tensor | Sequence[Sequence[float]],
    *,
    out: Tensor | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Edit | None:
    """Rebuild θ = θ₀ + Σᵢ λ[g, i]·τᵢ,g and give its quick scores: one edit by hand.

    Args:
        assembly: any recipe with the same checkpoints and tasks, opened; keep it between edits.
        coefficients: λ (G, n) after the edit.
        out: (P,) to rebuild in, kept between edits to save its allocation.
        should_stop: asked before every pass of the model; once it says yes (a newer edit is there) the result is None.

    Raises FwvizError for coefficients that no recipe can hold, or for another number of groups than the model's.
    """
    recipe = edited_recipe(assembly.recipe, granularity, coefficients)
    assert recipe.coefficients is not None
    vectors = assembly.problem.vectors
    groups = vectors.layout.groups(granularity)
    if len(recipe.coefficients.values) != len(groups):
        raise FwvizError(
            f"there are {len(recipe.coefficients.values)} rows of coefficients, but the model has {len(groups)} groups "
            f"at granularity {granularity}: give one row per group."
        )
    start = time.perf_counter()
    theta = vectors.combine(recipe.coefficients.tensor(), groups, out=out)
    rebuilt = time.perf_counter()
    if should_stop is None:
        scores = assembly.evaluator.quick(theta)
    else:
        judged = assembly.evaluator.quick(theta, should_stop=should_stop)
        if judged is None:
            return None
        scores = judged
    return Edit(recipe, scores, rebuilt - start, time.perf_counter() - rebuilt)


def refined(coefficients: Tensor, granularity: Granularity, to: Granularity, layout: ParamLayout) -> Tensor:
    """The same merge on finer groups, to be edited there: (G, n) → (G', n). FwvizError if ``to`` is coarser."""
    order: tuple[Granularity, ...] = ("model", "layer", "tensor")
    if order.index(to) < order.index(granularity):
        raise FwvizError(
            f"coefficients per {granularity} cannot be written per {to} without losing some: choose finer."
        )
    return coefficients[parents(layout.groups(to), layout.groups(granularity))]
