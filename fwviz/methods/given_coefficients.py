"""Coefficients by hand: the merge that somebody wrote down, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fwviz.registry import merge_method, setting
from fwviz.types import Coefficients, Problem, Step


@dataclass(frozen=True)
class Settings:
    """One factor over everything that is given."""

    scale: float = setting(1.0, "Factor on all coefficients that the recipe gives.", low=0.0, high=2.0)


@merge_method(
    "Coefficients by hand",
    Settings,
    data="none",
    paper="Editing models with task arithmetic",
    reference="Ilharco et al., ICLR 2023, arXiv:2212.04089",
    convex=True,
)
def given_coefficients(problem: Problem, settings: Settings) -> Iterator[Step]:
    """The base plus the task vectors with coefficients that the recipe gives: θ_g = θ₀,g + scale·Σᵢ λ[g, i]·τᵢ,g.

    Args: ``problem`` with n checkpoints and ``given`` λ (G, n); its objective is not used. Without ``given`` every
    checkpoint enters with 1/n, which is where an edit by hand begins. Yields one Step with coefficients (G, n).
    Reference: the linear merge of Ilharco et al. (2023), arXiv:2212.04089, eq. 1, with a coefficient of its own for
    every group and checkpoint.
    """
    n = problem.vectors.n
    given = problem.given or Coefficients("model", ((1.0 / n,) * n,))
    coefficients = settings.scale * given.tensor()
    sums = coefficients.sum(dim=1)
    origin = f"{coefficients.numel()} coefficients by hand" if problem.given else "no coefficients given: the average"
    total = f"{origin}, {torch.mean(sums):.3g} in sum over the checkpoints on average"
    yield Step(
        t=0,
        granularity=given.granularity,
        coefficients=coefficients,
        in_hull=bool((coefficients >= 0).all() and (sums <= 1.0 + 1e-6).all()),
        status="converged",
        note=total if bool(coefficients.any()) else "the base itself: all coefficients are 0",
    )
