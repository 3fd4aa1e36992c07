"""DARE: drop entries of the task vectors at random and rescale the rest, then add or resolve them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fwviz.methods import _scale
from fwviz.methods._drop import UNIT, uniform
from fwviz.methods._resolve import MERGE_HELP, MERGES, ZERO_SIGN_HELP, ZERO_SIGNS, resolved
from fwviz.registry import merge_method, setting
from fwviz.space.blocks import Blocks, Piece
from fwviz.space.sparsify import drop_and_rescale
from fwviz.types import Problem, Step

COMBINATIONS = ("task_arithmetic", "ties")


@dataclass(frozen=True)
class Settings:
    """Settings of DARE; the defaults are those of the paper."""

    drop_rate: float = setting(
        0.9,
        "Probability that an entry of a task vector is dropped; the others are divided by 1 − it.",
        low=0.0,
        high=0.999,
    )
    combine: str = setting(
        "task_arithmetic",
        "What is done with what is left: its sum, or TIES without a trim (elect a sign, merge what has it).",
        choices=COMBINATIONS,
    )
    merge: str = setting("sum", MERGE_HELP, choices=MERGES, applies={"combine": ("ties",)})
    zero_sign: str = setting("majority", ZERO_SIGN_HELP, choices=ZERO_SIGNS, applies={"combine": ("ties",)})
    scale: float = _scale.scale_setting(0.3, "Factor on the merged task vector, as in task arithmetic.")
    scale_search: str = _scale.search_setting()
    scale_points: int = _scale.points_setting()
    scale_most: float = _scale.most_setting(1.0)


@merge_method(
    "DARE",
    Settings,
    data="none",
    paper="Language models are super Mario",
    reference="Yu et al., ICML 2024, arXiv:2311.03099",
)
def dare(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Drop and rescale: θ = θ₀ + scale·Σᵢ mᵢ ⊙ τᵢ / (1 − p), each entry of the masks mᵢ being 0 with probability p.

    The expectation over the masks is task arithmetic. With ``combine = ties`` a sign is elected and what has it
    is merged. The mask of a checkpoint is fixed by the seed and its name.

    Args: ``problem`` with n checkpoints; its objective is used only to search the scale. Yields one Step with the delta
    (P,), before it one for each scale tried.
    Reference: Yu et al. (2024), arXiv:2311.03099, eq. 2–3, and the code released with it.
    """
    blocks = Blocks(problem.vectors)
    bounds = (0, problem.vectors.layout.size)
    pieces = blocks.pieces(bounds, (UNIT,))

    def dropped(block: Tensor, piece: Piece) -> Tensor:
        return drop_and_rescale(block, settings.drop_rate, uniform(problem, piece, UNIT))

    if settings.combine == "task_arithmetic":
        delta = blocks.merge(lambda block, piece: dropped(block, piece).sum(dim=0), pieces)
    else:
        delta = resolved(blocks, dropped, pieces, settings.merge, settings.zero_sign)
    note = f"{100 * settings.drop_rate:g} % of each task vector dropped at random, the rest rescaled"
    yield from _scale.scaled_delta(problem, settings, delta, note)
