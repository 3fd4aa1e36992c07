"""How alike the task vectors of two checkpoints are."""

from __future__ import annotations

import pandas as pd

from fwviz.lenses import _names as names
from fwviz.lenses._groups import containing
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.similarity import cosine


@lens("Similarity of task vectors", question="Which checkpoints changed the model in the same direction?")
def similarity(assembly: Assembly, *, group: str = "model") -> pd.DataFrame:
    """cos(τᵢ, τⱼ) = ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖·‖τⱼ‖) of every pair, over the whole model, one layer or one tensor.

    Reads every checkpoint once, in blocks of bounded size.

    Args:
        assembly: the opened recipe.
        group: "model", a layer or a tensor.

    Returns one row per ordered pair, the checkpoint with itself included: ``group``, ``checkpoint``,
    ``checkpoint_title``, ``other``, ``other_title``, ``cosine`` (0 if one of them did not change), ``norm`` (‖τᵢ‖).
    """
    vectors = assembly.problem.vectors
    groups = containing(vectors.layout, group)
    products = vectors.gram(groups)[groups.names.index(group)]
    titles = names.checkpoint_titles(vectors.names, assembly.pool.card)
    norms, values = products.diagonal().sqrt().tolist(), cosine(products).tolist()
    rows = [
        {
            "group": group,
            "checkpoint": a,
            "checkpoint_title": titles[a],
            "other": b,
            "other_title": titles[b],
            "cosine": values[i][j],
            "norm": norms[i],
        }
        for i, a in enumerate(vectors.names)
        for j, b in enumerate(vectors.names)
    ]
    return pd.DataFrame(rows)
