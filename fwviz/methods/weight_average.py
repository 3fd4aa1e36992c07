"""Weight averaging: the mean of the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fwviz.registry import merge_method
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """Weight averaging has no settings."""


@merge_method(
    "Weight averaging",
    Settings,
    data="none",
    paper="Model soups",
    reference="Wortsman et al., ICML 2022, arXiv:2203.05482 (uniform soup)",
    convex=True,
)
def weight_average(problem: Problem, settings: Settings) -> Iterator[Step]:
    """The mean of the checkpoints: θ = (1/n)·Σᵢ θᵢ = θ₀ + Σᵢ τᵢ/n.

    Args: ``problem`` with n checkpoints; its objective is not used. Yields one Step with coefficients (1, n).
    Reference: Wortsman et al. (2022), Model soups, arXiv:2203.05482, uniform soup.
    """
    n = problem.vectors.n
    yield Step(
        t=0,
        granularity="model",
        coefficients=torch.full((1, n), 1.0 / n),
        in_hull=True,
        status="converged",
        note=f"the mean of {n} checkpoints: every task vector with coefficient {1.0 / n:.3g}",
    )
