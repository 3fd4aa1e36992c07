"""How much of every checkpoint is in a merge, group by group."""

from __future__ import annotations

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.trace import Trace


@lens("What is in the merge", question="How much of each checkpoint did the merge take?")
def coefficients(trace: Trace, card: PoolCard | None = None, *, index: int = -1) -> pd.DataFrame:
    """The coefficients λ[g, i] of one frame: θ_g = θ₀,g + Σ_i λ[g, i]·τ_i,g.

    Args:
        trace: a recorded run.
        index: the frame; negative counts from the end.

    Returns one row per group × checkpoint: ``index``, ``t``, ``group``, ``group_index``, ``group_size`` (parameters),
    ``checkpoint``, ``checkpoint_title``, ``task`` (the evaluated task it was fine-tuned on, categorical over the
    recipe's tasks; missing for the others), ``coefficient``. No rows for a merge that is not linear.
    """
    frame = trace.frame(index) if trace.frames else None
    columns = [
        "index",
        "t",
        "group",
        "group_index",
        "group_size",
        "checkpoint",
        "checkpoint_title",
        "task",
        "coefficient",
    ]
    rows = []
    if frame is not None and frame.coefficients is not None:
        titles = names.checkpoint_titles(trace.checkpoints, card)
        own = names.own_task(trace.checkpoints, trace.tasks, card)
        groups, sizes = trace.groups[frame.granularity], trace.group_sizes[frame.granularity]
        rows = [
            {
                "index": frame.index,
                "t": frame.t,
                "group": groups[g],
                "group_index": g,
                "group_size": sizes[g],
                "checkpoint": name,
                "checkpoint_title": titles[name],
                "task": own[name],
                "coefficient": value,
            }
            for g, values in enumerate(frame.coefficients)
            for name, value in zip(trace.checkpoints, values, strict=True)
        ]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(task=names.ordered(table["task"], trace.tasks))
