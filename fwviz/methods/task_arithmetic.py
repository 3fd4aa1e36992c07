"""Task arithmetic: the base plus the scaled sum of the task vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fwviz.methods import _scale
from fwviz.registry import merge_method
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """One scale for all task vectors."""

    scale: float = _scale.scale_setting(0.3, "Coefficient of every task vector; 0.29 in the language benchmarks.")
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(1.0)


@merge_method(
    "Task arithmetic",
    Settings,
    data="none",
    paper="Editing models with task arithmetic",
    reference="Ilharco et al., ICLR 2023, arXiv:2212.04089",
)
def task_arithmetic(problem: Problem, settings: Settings) -> Iterator[Step]:
    """The base plus the scaled sum of the task vectors: θ = θ₀ + scale·Σᵢ τᵢ.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with
    coefficients (1, n), before it one for each scale tried.
    The result leaves the hull of base and checkpoints as soon as scale·n > 1.
    Reference: Ilharco et al. (2023), arXiv:2212.04089, eq. 1; scale 0.3 as in FW-Merging's baselines.
    """
    yield from _scale.scaled_sum(problem, settings, f"the sum of {problem.vectors.n} task vectors")
