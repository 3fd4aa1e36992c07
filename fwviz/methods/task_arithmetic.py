"""Task arithmetic: the base plus the scaled sum of the task vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fwviz.registry import merge_method, setting
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """One scale for all task vectors."""

    scale: float = setting(0.3, "Coefficient of every task vector; 0.29 in the language benchmarks.", low=0.0, high=2.0)


@merge_method(
    "Task arithmetic",
    Settings,
    data="none",
    paper="Editing models with task arithmetic",
    reference="Ilharco et al., ICLR 2023, arXiv:2212.04089",
)
def task_arithmetic(problem: Problem, settings: Settings) -> Iterator[Step]:
    """The base plus the scaled sum of the task vectors: θ = θ₀ + scale·Σᵢ τᵢ.

    Args: ``problem`` with n checkpoints; its objective is not used. Yields one Step with coefficients (1, n).
    The result leaves the hull of base and checkpoints as soon as scale·n > 1.
    Reference: Ilharco et al. (2023), arXiv:2212.04089, eq. 1; scale 0.3 as in FW-Merging's baselines.
    """
    n = problem.vectors.n
    total = settings.scale * n
    yield Step(
        t=0,
        granularity="model",
        coefficients=torch.full((1, n), settings.scale),
        in_hull=total <= 1.0 + 1e-6,
        status="converged",
        note=f"{n} task vectors with coefficient {settings.scale:g} each, {total:.3g} in sum",
    )
