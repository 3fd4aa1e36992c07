"""What does one task vector do to the other tasks, with its coarse part and without? Checkpoint × task."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _grid as grid
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "A row is one task vector alone on the base, a column a task; the framed cell is the task it was fine-tuned on. "
    "Blue: better, orange: worse — than without the filter, or than the base, as chosen above. If it is the coarse "
    "part that disturbs other tasks, taking it out costs little in the frames and helps outside of them."
)


@chart(
    "Generalisation",
    question="What does one task vector do to the other tasks, with its coarse part and without?",
    lens="generalisation",
    reading=READING,
)
def generalisation(
    data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False, value: str = "difference"
) -> go.Figure:
    """Heat-map of what the filter changes, or of the accuracy with it or without, coloured by the distance to the base.

    Args:
        data: one row per checkpoint × task of the lens ``generalisation``: ``checkpoint``, ``task``, ``accuracy``,
            ``filtered``, optionally ``base``, ``own``, ``cutoff`` and titles.
        value: "difference" (filtered − accuracy), "accuracy" (without the filter) or "filtered".
    """
    rows = style.take(data, ("accuracy", "filtered", "checkpoint", "task"), ("accuracy", "filtered"))
    if not len(rows):
        return style.empty(
            "No task vector has been tested yet.", theme, reading=READING, revision=f"generalisation {value}"
        )
    rows = rows.assign(checkpoint=rows["checkpoint"].astype(str), task=rows["task"].astype(str))
    rows["base"] = pd.to_numeric(rows["base"], errors="coerce") if "base" in rows else np.nan
    rows["framed"] = style.flag(rows, "own").astype(float)
    checkpoints, tasks = style.titles(rows, "checkpoint"), style.titles(rows, "task")
    plain, filtered, base, framed = (
        grid.cells(rows, "checkpoint", list(checkpoints), list(tasks), column)
        for column in ("accuracy", "filtered", "base", "framed")
    )
    own = framed > 0
    change = filtered - plain
    drawn = {"difference": change, "accuracy": plain, "filtered": filtered}[value]
    # Where the base's accuracy is not known there is nothing to compare with: the number stands on no colour.
    colour = change if value == "difference" else np.where(np.isnan(base), 0.0 * drawn, drawn - base)
    texts = np.array([[style.points(v)[:-7] if value == "difference" else f"{v:.0%}" for v in row] for row in drawn])
    known = "" if np.isnan(base).all() else ", base %{customdata[2]:.1%}"
    made = grid.Grid(
        "checkpoint",
        checkpoints,
        tasks,
        100 * colour,
        texts,
        np.stack([plain, filtered, base, 100 * change], axis=-1),
        f"task vector of <b>%{{text}}</b>, tested on <b>%{{x}}</b>:<br>%{{customdata[0]:.1%}} as it is, "
        f"%{{customdata[1]:.1%}} filtered (%{{customdata[3]:+.1f}} points){known}.",
        own,
    )
    said = _said(change, own)
    cutoff = f" below ρ = {float(rows['cutoff'].iloc[0]):g}" if "cutoff" in rows else ""
    against = "the unfiltered" if value == "difference" else "the base"
    return grid.draw(
        made,
        theme,
        narrow,
        name=f"generalisation {value}",
        ends=(f"worse than {against}", "better"),
        unit=" points",
        notes=[said if narrow else f"taken out{cutoff}: {said}"],
        reading=READING,
        summary=f"{len(checkpoints)} task vectors on {len(tasks)} tasks; without the coarse part{cutoff}: {said}.",
    )


def _said(change: np.ndarray, own: np.ndarray) -> str:
    """The mean change on the tasks the vectors were made on, and on the others."""
    parts = []
    for name, wanted in (("own tasks", own), ("others", ~own)):
        seen = change[wanted & np.isfinite(change)]
        if seen.size:
            parts.append(f"{name} {style.points(float(seen.mean()))}")
    return ", ".join(parts)
