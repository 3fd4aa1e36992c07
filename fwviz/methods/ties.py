"""TIES: trim each task vector, elect a sign per coordinate, merge what has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fwviz.methods import _scale
from fwviz.methods._filter import high_pass_setting, high_passed
from fwviz.methods._resolve import MERGE_HELP, MERGES, ZERO_SIGN_HELP, ZERO_SIGNS, resolved
from fwviz.registry import merge_method, setting
from fwviz.space.blocks import Blocks, Piece
from fwviz.space.sparsify import kept_above, trim_rows
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """Settings of TIES; the defaults are those of the released code, with the mean of the agreeing entries."""

    density: float = setting(0.2, "Share of each task vector that is kept, the largest magnitudes.", low=0.0, high=1.0)
    trim_scope: str = setting(
        "global",
        "Trim over the whole task vector, as the released code does (it keeps ⌊density·P⌋ + 1 entries), or in every "
        "tensor for itself, as mergekit and PEFT do (⌊density·size⌋, one at least).",
        choices=("global", "tensor"),
    )
    merge: str = setting("mean", MERGE_HELP, choices=MERGES)
    zero_sign: str = setting("majority", ZERO_SIGN_HELP, choices=ZERO_SIGNS)
    high_pass: float = high_pass_setting()
    scale: float = _scale.scale_setting(1.0, "Factor on the merged task vector: 1 for the mean, about 0.3 for the sum.")
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(2.0)


@merge_method(
    "TIES",
    Settings,
    data="none",
    paper="TIES-Merging: resolving interference when merging models",
    reference="Yadav et al., NeurIPS 2023, arXiv:2306.01708",
)
def ties(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Trim, elect sign, disjoint merge: θ = θ₀ + scale·δ.

    τ̂ᵢ keeps the entries of τᵢ of largest magnitude; γ_p = sgn(Σᵢ τ̂ᵢ,p); δ_p is the mean (or sum) of the τ̂ᵢ,p whose sign
    is γ_p.
    Where Σᵢ τ̂ᵢ,p = 0 although there are entries, γ_p is the sign of Σ_p γ_p (released code), or plus.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with the delta
    (P,), before it one for each scale tried. Reads every checkpoint twice; memory beyond δ does not depend on n.
    Reference: Yadav et al. (2023), arXiv:2306.01708, alg. 1, and the code released with it.
    """
    blocks = Blocks(problem.vectors, high_passed(problem.vectors.layout, settings.high_pass))
    delta = merged(blocks, settings.density, settings.trim_scope, settings.merge, settings.zero_sign)
    kept = f"{settings.density:g} of each {'task vector' if settings.trim_scope == 'global' else 'tensor'} kept"
    note = f"{settings.merge} of the entries with the elected sign, {kept}"
    yield from _scale.scaled_delta(problem, settings, delta, note)


def merged(blocks: Blocks, density: float, scope: str, merge: str, zero_sign: str) -> Tensor:
    """δ (P,) of :func:`ties` at scale 1."""
    bounds = blocks.layout.groups("model" if scope == "global" else "tensor").bounds
    rule = "released" if scope == "global" else "exact"
    limits = blocks.order_statistics(bounds, lambda size: [kept_above(size, density, rule)])[:, :, 0]

    def trimmed(block: Tensor, piece: Piece) -> Tensor:
        return trim_rows(block, limits[:, piece.group])

    return resolved(blocks, trimmed, blocks.pieces(bounds), merge, zero_sign)
