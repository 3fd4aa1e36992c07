"""The weights that several merges learnt, gathered by what a tensor does."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses.weights_map import weights_map
from fwviz.registry import lens
from fwviz.runs.trace import Trace


@lens("Weights by type", question="Do some kinds of weights take more of the checkpoints than others?")
def weights_by_type(traces: Sequence[Trace], card: PoolCard | None = None, *, t: int = -1) -> pd.DataFrame:
    """Mean coefficient per weight type: over its tensors, each counting once, and over the checkpoints.

    Args:
        traces: recorded runs of the same pool.
        t: the last frame at or before this iteration; negative is the end of each run.

    Returns one row per run × weight type: ``run``, ``label``, ``t``, ``weight_type`` (categorical), ``tensors`` (how
    many), ``mean``, ``low`` and ``high`` (10 % and 90 % of the single coefficients lie below them).

    Source: SuperMerge, Fig. 5b.
    """
    rows = weights_map(traces, card, t=t, granularity="tensor")
    grouped = rows.groupby(["run", "label", "t", "weight_type"], sort=False, observed=True)
    table = grouped["coefficient"].agg(
        mean="mean", low=lambda values: values.quantile(0.1), high=lambda values: values.quantile(0.9)
    )
    table.insert(0, "tensors", grouped["group"].nunique())
    return table.reset_index()
