"""Where two checkpoints pull the same weight in opposite directions."""

from __future__ import annotations

import pandas as pd

from fwviz.lenses import _names as names
from fwviz.lenses._groups import span
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.pairs import sign_conflicts


@lens("Sign conflicts", question="Which checkpoints pull the same weights in opposite directions?")
def sign_conflict(assembly: Assembly, *, group: str = "model", weighted: bool = False) -> pd.DataFrame:
    """The share of coordinates p with τᵢ,p·τⱼ,p < 0, of those where both changed. Half is what chance gives.

    Args:
        assembly: the opened recipe.
        group: "model", a layer or a tensor.
        weighted: a coordinate counts by |τᵢ,p·τⱼ,p|, so that conflicts between large changes weigh more.

    Returns one row per ordered pair: ``group``, ``weighted``, ``checkpoint``, ``checkpoint_title``, ``other``,
    ``other_title``, ``conflict`` (in [0, 1], 0 of a checkpoint with itself).

    Source: the conflict that TIES-Merging elects signs for (Yadav et al. 2023, Fig. 3).
    """
    vectors = assembly.problem.vectors
    values = sign_conflicts(vectors, *span(vectors.layout, group), weighted=weighted).tolist()
    titles = names.checkpoint_titles(vectors.names, assembly.pool.card)
    rows = [
        {
            "group": group,
            "weighted": weighted,
            "checkpoint": a,
            "checkpoint_title": titles[a],
            "other": b,
            "other_title": titles[b],
            "conflict": values[i][j],
        }
        for i, a in enumerate(vectors.names)
        for j, b in enumerate(vectors.names)
    ]
    return pd.DataFrame(rows)
