"""FR-Merging: what is slow in each matrix of a task vector is filtered out before they are added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fwviz.methods import _frequency, _scale
from fwviz.registry import merge_method
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """Settings of FR-Merging; weights and scale were chosen on the embedded pool's validation data with 8 checkpoints.

    There cutoffs from 0 to 0.1 do equally well; with all 22 the largest of them does best.
    """

    mode: str = _frequency.mode_setting()
    band: str = _frequency.band_setting()
    cutoff: float = _frequency.cutoff_setting(0.1)
    upper_cutoff: float = _frequency.upper_cutoff_setting()
    ratio: float = _frequency.ratio_setting()
    side: str = _frequency.side_setting()
    filter_tensors: str = _frequency.tensors_setting()
    others: str = _frequency.others_setting("base")
    weights: str = _frequency.weights_setting("balanced")
    scale: float = _scale.scale_setting(
        0.4, "Factor on the weighted sum of filtered task vectors; the paper has 0.7 for 8 ViTs."
    )
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(1.0)


@merge_method(
    "FR-Merging",
    Settings,
    data="none",
    paper="FREE-Merging: Fourier transform for efficient model merging",
    reference="Zheng & Wang, ICCV 2025, arXiv:2411.16815",
)
def fr_merging(problem: Problem, settings: Settings) -> Iterator[Step]:
    """High-pass filter every matrix of every task vector, then add: θ = θ₀ + scale·Σᵢ λᵢ·G(τᵢ).

    G(τ) = F⁻¹{1[ρ ≥ cutoff]·F{τ}} in two dimensions, ρ the radial frequency in [0, 1]. The paper reports that low
    frequencies differ most between task vectors and carry what is special to a task. The weights λ are those of eq. 3
    (mean magnitude over the sum of mean magnitudes; a signed mean would be about zero), those of the released code,
    which go the other way, the same around the median, or 1. The released biases come from the first checkpoint alone,
    a slip: here they stay at the base.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with the delta
    (P,), before it one for each scale tried. Memory beyond the delta is a few matrices, whatever n is.
    Reference: Zheng & Wang (2025), arXiv:2411.16815, eq. 1–3 and appendix D.7; the code released with it.
    """
    passing = _frequency.filter_of(settings)
    delta = _frequency.frequency_delta(
        problem.vectors,
        passing,
        filter_tensors=settings.filter_tensors,
        others=settings.others,
        weights=settings.weights,
    )
    note = f"{settings.weights} sum of {problem.vectors.n} filtered task vectors, {passing.words}"
    note += _frequency.nothing_filtered(problem.vectors.layout, settings.filter_tensors, settings.others)
    yield from _scale.scaled_delta(problem, settings, delta, note)
