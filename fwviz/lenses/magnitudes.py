"""How far fine-tuning moved the weights of every layer."""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor

from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.magnitudes import density, histogram, quantiles
from fwviz.types import Granularity

LEVELS = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "largest": 1.0}
MEDIAN = list(LEVELS).index("median")
POINTS = 33  # of the density of a group
LOWEST = 0.01  # the quantile, of what moved, at which a density begins: its logarithm goes on for decades below


@lens("Size of the changes", question="Which layers did fine-tuning change most?")
def magnitudes(assembly: Assembly, *, granularity: Granularity = "layer") -> pd.DataFrame:
    """Density and quantiles of |τᵢ,p| over the coordinates p of each group, per checkpoint and of all together.

    From a histogram with bins of about 10 % width, linear inside a bin: one pass, memory bounded at any size. The
    density is that of log₁₀|τ|, estimated with a Gaussian kernel.

    Args:
        assembly: the opened recipe.
        granularity: layers or tensors (or the whole model).

    Returns rows group × checkpoint × size of change: 33 sizes for all checkpoints together, which come first, from the
    1 % quantile of what moved to the largest, and its median for each checkpoint. Columns ``group``, ``group_index``
    (input to output), ``layer``, ``size`` (parameters), ``checkpoint`` ("all" or an id), ``checkpoint_title``,
    ``change`` (|τ| in units of the weights), ``density`` (share of the parameters per decade at that size), and on each
    row of a group and checkpoint ``q05``, ``q25``, ``median``, ``q75``, ``q95``, ``largest`` (in units of the weights).

    Source: SuperMerge, Fig. 3.
    """
    problem = assembly.problem
    vectors, groups = problem.vectors, problem.groups(granularity)
    titles = {"all": "all checkpoints"} | names.checkpoint_titles(vectors.names, assembly.pool.card)
    layers = dict(zip(vectors.layout.offsets, vectors.layout.layers, strict=False))
    rows = []
    for g, (group, (start, stop)) in enumerate(zip(groups.names, groups.ranges(), strict=True)):
        counts = histogram(vectors, start, stop)
        counts = torch.cat([counts.sum(dim=0, keepdim=True), counts])
        found = quantiles(counts, tuple(LEVELS.values()))
        moved = counts[0].clone()
        moved[0] = 0  # zeros have no logarithm
        lowest = float(quantiles(moved, (LOWEST,))[0])
        for i, name in enumerate(("all", *vectors.names)):
            values = found[i].tolist()
            facts = {
                "group": group,
                "group_index": g,
                "layer": "model" if granularity == "model" else layers[start],
                "size": stop - start,
                "checkpoint": name,
                "checkpoint_title": titles[name],
            } | dict(zip(LEVELS, values, strict=True))
            changes = _sizes(lowest, values[-1]) if i == 0 else torch.tensor([values[MEDIAN]], dtype=torch.float64)
            for change, height in zip(changes.tolist(), density(counts[i], changes).tolist(), strict=True):
                rows.append(facts | {"change": change, "density": height})
    return pd.DataFrame(rows)


def _sizes(lowest: float, largest: float) -> Tensor:
    """Sizes from the lowest to the largest, evenly in their logarithm; 0 alone where nothing moved."""
    if largest == 0.0:
        return torch.zeros(1, dtype=torch.float64)
    return torch.logspace(math.log10(lowest), math.log10(largest), POINTS, dtype=torch.float64)
