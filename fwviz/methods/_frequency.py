"""What methods that filter task vectors in the frequency domain share: the filter, where it applies, the weights.

A filter takes one whole matrix of one checkpoint at a time, so that memory beside the result is a few matrices.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from fwviz.registry import setting
from fwviz.space import spectrum
from fwviz.space.parallel import in_parallel
from fwviz.space.wide import total
from fwviz.types import ParamLayout, TaskVectors

MODES = ("paper", "official")
BANDS = ("high", "band", "low")
SIDES = ("min", "max")
TENSORS = ("blocks", "matrices")
OTHERS = ("base", "merged")
WEIGHTS = ("proportional", "equalised", "balanced", "uniform")
# What all task vectors are brought to, tensor by tensor, from their mean magnitudes.
LEVELS: dict[str, Callable[[Sequence[float]], float]] = {"equalised": max, "balanced": statistics.median}

_LEFT = {"base": "so that this is the base itself", "merged": "so that all is merged as it is"}
_PAPER = {"mode": ("paper",)}
_OFFICIAL = {"mode": ("official",)}


class FrequencySettings(Protocol):
    """The settings of a method that filters task vectors."""

    @property
    def mode(self) -> str: ...

    @property
    def band(self) -> str: ...

    @property
    def cutoff(self) -> float: ...

    @property
    def upper_cutoff(self) -> float: ...

    @property
    def ratio(self) -> float: ...

    @property
    def side(self) -> str: ...

    @property
    def filter_tensors(self) -> str: ...

    @property
    def others(self) -> str: ...

    @property
    def weights(self) -> str: ...


def mode_setting() -> Any:
    """The field ``mode``."""
    return setting(
        "paper",
        "Filter as the paper says, by true distance from frequency zero, or as the released code does, which hardly "
        "touches square matrices and cuts long ones strongly.",
        choices=MODES,
    )


def band_setting() -> Any:
    """The field ``band``."""
    return setting(
        "high",
        "Frequencies that stay: from the cutoff up, from the cutoff to the upper cutoff, or below the cutoff.",
        choices=BANDS,
        applies=_PAPER,
    )


def cutoff_setting(default: float) -> Any:
    """The field ``cutoff``."""
    return setting(
        default,
        "Radial frequency where the filter cuts: 0 is the mean of a matrix, 1 its finest pattern.",
        low=0.0,
        high=1.0,
        applies=_PAPER,
    )


def upper_cutoff_setting() -> Any:
    """The field ``upper_cutoff``."""
    return setting(
        0.7,
        "Radial frequency below which a band ends.",
        low=0.0,
        high=1.0,
        applies={**_PAPER, "band": ("band",)},
    )


def ratio_setting() -> Any:
    """The field ``ratio``."""
    return setting(
        0.7,
        "Radius of what the released filter keeps, in units of a side: 0.7 for vision, 0.6 for RoBERTa, 0.9 for LLMs.",
        low=0.0,
        high=1.5,
        applies=_OFFICIAL,
    )


def side_setting() -> Any:
    """The field ``side``."""
    return setting(
        "min",
        "The side of a matrix the ratio is a share of: the shorter one for vision, the longer one for RoBERTa.",
        choices=SIDES,
        applies=_OFFICIAL,
    )


def tensors_setting() -> Any:
    """The field ``filter_tensors``."""
    return setting(
        "blocks",
        "Matrices that are filtered: those of attention and MLP, inside the blocks, as for the paper's ViTs; or every "
        "two-dimensional tensor, embeddings included, as for its language models.",
        choices=TENSORS,
    )


def others_setting(default: str) -> Any:
    """The field ``others``."""
    return setting(
        default,
        "Tensors that are not filtered stay at the base, as in the released code for ViTs, or are merged as they are.",
        choices=OTHERS,
    )


def weights_setting(default: str) -> Any:
    """The field ``weights``."""
    return setting(
        default,
        "Weights of the checkpoints before the scale: in proportion to their mean magnitude and summing to 1 (eq. 3); "
        "in every tensor raised to the largest mean magnitude (released code); brought to the median magnitude, which "
        "one checkpoint far from the others cannot move (ours); or 1 each.",
        choices=WEIGHTS,
    )


@dataclass(frozen=True)
class Filter:
    """One filter for matrices of any shape."""

    mode: str = "paper"
    band: str = "high"
    cutoff: float = 0.0
    upper_cutoff: float = 1.0
    ratio: float = 0.7
    side: str = "min"

    def __call__(self, matrices: Tensor) -> Tensor:
        """What passes: (…, H, W) → a new tensor of its shape."""
        if self.mode == "official":
            return spectrum.official_high_pass(matrices, self.ratio, side=self.side)
        if self.band == "high":
            return spectrum.high_pass(matrices, self.cutoff)
        if self.band == "low":
            return spectrum.low_pass(matrices, self.cutoff)
        return spectrum.band_pass(matrices, self.cutoff, max(self.cutoff, self.upper_cutoff))

    @property
    def words(self) -> str:
        """The filter in a few words, for notes."""
        if self.mode == "official":
            return f"released filter of {self.ratio:g} of the {'shorter' if self.side == 'min' else 'longer'} side"
        if self.band == "band":
            return f"frequencies from {self.cutoff:g} to {max(self.cutoff, self.upper_cutoff):g}"
        return f"frequencies {'from' if self.band == 'high' else 'below'} {self.cutoff:g}"


def filter_of(settings: FrequencySettings) -> Filter:
    """The filter that settings describe."""
    return Filter(settings.mode, settings.band, settings.cutoff, settings.upper_cutoff, settings.ratio, settings.side)


def filtered_tensors(layout: ParamLayout, choice: str) -> frozenset[int]:
    """Positions in the layout of the matrices that are filtered."""
    return frozenset(
        j
        for j, (shape, layer) in enumerate(zip(layout.shapes, layout.layers, strict=True))
        if len(shape) == 2 and (choice == "matrices" or "block." in layer)
    )


def nothing_filtered(layout: ParamLayout, filter_tensors: str, others: str) -> str:
    """What a note adds where the filter meets no tensor at all: then the merge is not what it is called."""
    if filtered_tensors(layout, filter_tensors):
        return ""
    if filtered_tensors(layout, "matrices"):
        return f"; no matrix inside a block to filter, {_LEFT[others]}: set filter_tensors to matrices"
    return f"; no matrix to filter, {_LEFT[others]}: choose a method without a filter"


def frequency_delta(vectors: TaskVectors, passing: Filter, *, filter_tensors: str, others: str, weights: str) -> Tensor:
    """δ = Σᵢ λᵢ·G(τᵢ) at scale 1, the backbone of FR-Merging: (P,) float32 beside the base.

    G filters the chosen matrices; the others are zero or as they are. With v = G(τ) in one tensor and mean |·|:
    uniform λᵢ = 1; equalised λᵢ = max_k mean|v_k| / mean|vᵢ| per tensor; balanced the same with the median in place of
    the maximum; proportional λᵢ = mean|τᵢ| / Σ_k mean|τ_k| over all the chosen matrices, before the filter.
    """
    layout = vectors.layout
    chosen = filtered_tensors(layout, filter_tensors)
    shares = magnitude_shares(vectors, chosen) if weights == "proportional" else [1.0] * vectors.n
    delta = torch.zeros(layout.size, device=vectors.base.device)

    def one(j: int) -> None:
        start, stop = layout.offsets[j : j + 2]
        total, means = delta[start:stop], []
        for i in range(vectors.n):
            part = vectors.block(start, stop, [i])[0]
            if j in chosen:
                part = passing(part.view(layout.shapes[j])).view(-1)
            weight = shares[i]
            if weights in LEVELS:
                means.append(float(part.abs().mean()))
                weight = 1 / means[-1] if means[-1] > 0 else 0.0
            total.add_(part, alpha=weight)
        if weights in LEVELS:
            total.mul_(LEVELS[weights]([mean for mean in means if mean > 0] or [0.0]))

    in_parallel(one, [j for j in range(len(layout.names)) if j in chosen or others == "merged"], delta.device)
    return delta


def magnitude_shares(vectors: TaskVectors, chosen: frozenset[int]) -> list[float]:
    """mean|τᵢ| / Σ_k mean|τ_k| over the chosen tensors; all equal where nothing differs from the base."""
    bounds = [pair for j, pair in enumerate(pairwise(vectors.layout.offsets)) if j in chosen]
    sums = [_magnitude(vectors, i, bounds) for i in range(vectors.n)]
    total = sum(sums)
    return [part / total for part in sums] if total > 0 else [1 / vectors.n] * vectors.n


def _magnitude(vectors: TaskVectors, i: int, bounds: Sequence[tuple[int, int]]) -> float:
    return sum(total(vectors.block(start, stop, [i])[0].abs_()) for start, stop in bounds)
