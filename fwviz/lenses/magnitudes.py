"""How far fine-tuning moved the weights of every layer."""

from __future__ import annotations

import pandas as pd
import torch

from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.magnitudes import histogram, quantiles
from fwviz.types import Granularity

LEVELS = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "largest": 1.0}


@lens("Size of the changes", question="Which layers did fine-tuning change most?")
def magnitudes(assembly: Assembly, *, granularity: Granularity = "layer") -> pd.DataFrame:
    """Quantiles of |τᵢ,p| over the coordinates p of each group, per checkpoint and of all checkpoints together.

    From a histogram with bins of about 10 % width, linear inside a bin: one pass, memory bounded at any size.

    Args:
        assembly: the opened recipe.
        granularity: layers or tensors (or the whole model).

    Returns one row per group × checkpoint, "all" first: ``group``, ``group_index`` (input to output), ``layer``,
    ``size`` (parameters), ``checkpoint`` ("all" or an id), ``checkpoint_title``, ``q05``, ``q25``, ``median``, ``q75``,
    ``q95``, ``largest`` (all in units of the weights).

    Source: SuperMerge, Fig. 3.
    """
    problem = assembly.problem
    vectors, groups = problem.vectors, problem.groups(granularity)
    titles = {"all": "all checkpoints"} | names.checkpoint_titles(vectors.names, assembly.pool.card)
    layers = dict(zip(vectors.layout.offsets, vectors.layout.layers, strict=False))
    rows = []
    for g, (group, (start, stop)) in enumerate(zip(groups.names, groups.ranges(), strict=True)):
        counts = histogram(vectors, start, stop)
        found = quantiles(torch.cat([counts.sum(dim=0, keepdim=True), counts]), tuple(LEVELS.values())).tolist()
        for name, values in zip(("all", *vectors.names), found, strict=True):
            rows.append(
                {
                    "group": group,
                    "group_index": g,
                    "layer": "model" if granularity == "model" else layers[start],
                    "size": stop - start,
                    "checkpoint": name,
                    "checkpoint_title": titles[name],
                }
                | dict(zip(LEVELS, values, strict=True))
            )
    return pd.DataFrame(rows)
