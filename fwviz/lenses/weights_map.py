"""How much of every checkpoint each tensor took, for one or several merges side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses import _names as names
from fwviz.lenses._groups import typed
from fwviz.registry import lens
from fwviz.runs.trace import Frame, Trace
from fwviz.space.layout import layer_of, weight_type
from fwviz.types import FwvizError, Granularity

COLUMNS = [
    "run",
    "label",
    "t",
    "group",
    "group_index",
    "group_size",
    "layer",
    "weight_type",
    "checkpoint",
    "checkpoint_title",
    "coefficient",
]


@lens("Learnt weights", question="Which checkpoint does each layer take, and do the methods agree?")
def weights_map(
    traces: Sequence[Trace], card: PoolCard | None = None, *, t: int = -1, granularity: Granularity = "tensor"
) -> pd.DataFrame:
    """The coefficients λ[g, i] of one moment of several runs, θ_g = θ₀,g + Σ_i λ[g, i]·τ_i,g, on common groups.

    Coefficients of a coarser granularity are repeated for the tensors they hold for; finer ones are averaged, weighted
    by their parameters. A run whose merge is not linear has no rows.

    Args:
        traces: recorded runs of the same pool.
        t: the last frame at or before this iteration (inner updates count); negative is the end of each run.
        granularity: what the rows are expanded to.

    Returns one row per run × group × checkpoint: ``run``, ``label`` (method, told apart where two are alike), ``t``,
    ``group``, ``group_index`` (input to output), ``group_size`` (parameters), ``layer``, ``weight_type`` (categorical;
    of tensors), ``checkpoint``, ``checkpoint_title``, ``coefficient``.

    Source: SuperMerge, Fig. 5a.
    """
    traces = list(traces)
    rows = []
    for k, (trace, label) in enumerate(zip(traces, labels(traces), strict=True)):
        frame = moment(trace, t)
        if frame is None or frame.coefficients is None:
            continue
        titles = names.checkpoint_titles(trace.checkpoints, card)
        groups, sizes = trace.groups[granularity], trace.group_sizes[granularity]
        for g, values in enumerate(_spread(trace, frame, granularity)):
            known = granularity == "tensor"
            for name, value in zip(trace.checkpoints, values, strict=True):
                row = (groups[g], g, sizes[g], layer_of(groups[g]) if known else groups[g])
                kind = weight_type(groups[g]) if known else "other"
                rows.append((trace.id or f"run {k + 1}", label, frame.t, *row, kind, name, titles[name], value))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(weight_type=typed(list(table["weight_type"])))


def labels(traces: Sequence[Trace]) -> list[str]:
    """The title of each run's method; runs of one method are numbered."""
    plain = [trace.recipe.title for trace in traces]
    seen: dict[str, int] = {}
    told = []
    for title in plain:
        seen[title] = seen.get(title, 0) + 1
        told.append(f"{title} {seen[title]}" if plain.count(title) > 1 else title)
    return told


def moment(trace: Trace, t: int) -> Frame | None:
    """The last frame at or before iteration t, the last of all if t is negative; None if there is none."""
    until = [frame for frame in trace.frames if t < 0 or frame.t <= t]
    return until[-1] if until else None


def _spread(trace: Trace, frame: Frame, granularity: Granularity) -> list[list[float]]:
    """The coefficients of a frame as rows of another granularity, by the offsets of the groups."""
    assert frame.coefficients is not None
    own, wanted = (list(accumulate(trace.group_sizes[g], initial=0)) for g in (frame.granularity, granularity))
    if own[-1] != wanted[-1]:
        raise FwvizError(f"run {trace.id!r} records groups of different models: delete it and run it again.")
    spread = []
    for start, stop in pairwise(wanted):
        total = [0.0] * len(trace.checkpoints)
        g = bisect_right(own, start) - 1
        while g < len(own) - 1 and own[g] < stop:
            share = (min(stop, own[g + 1]) - max(start, own[g])) / (stop - start)
            total = [sum_ + share * value for sum_, value in zip(total, frame.coefficients[g], strict=True)]
            g += 1
        spread.append(total)
    return spread
