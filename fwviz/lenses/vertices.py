"""Which vertices the oracle chose, group by group."""

from __future__ import annotations

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.trace import Trace


@lens("Chosen vertices", question="Which checkpoints did the oracle choose, and in which layers?")
def vertices(trace: Trace, card: PoolCard | None = None) -> pd.DataFrame:
    """The recorded choices of every iteration.

    Returns one row per iteration × group × chosen vertex: ``t`` (from 1), ``group``, ``group_index``, ``group_size``
    (parameters), ``checkpoint`` (or "base", "initial"), ``checkpoint_title``, ``place`` (0 = the group's first choice).
    A group that stayed where it was has no row.
    """
    titles = names.checkpoint_titles(trace.checkpoints, card)
    rows = []
    for frame in trace.iterates():
        # The oracle may be coarser than the coefficients: its groups are told by their number.
        granularity = next((g for g, found in trace.groups.items() if len(found) == len(frame.vertices)), None)
        if granularity is None:
            continue
        for g, chosen in enumerate(frame.vertices):
            for place, name in enumerate(chosen):
                rows.append(
                    {
                        "t": frame.t,
                        "group": trace.groups[granularity][g],
                        "group_index": g,
                        "group_size": trace.group_sizes[granularity][g],
                        "checkpoint": name,
                        "checkpoint_title": titles.get(name, name),
                        "place": place,
                    }
                )
    columns = ["t", "group", "group_index", "group_size", "checkpoint", "checkpoint_title", "place"]
    return pd.DataFrame(rows, columns=columns)
