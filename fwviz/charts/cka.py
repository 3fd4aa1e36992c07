"""Does a merge see a task's inputs as the task's own checkpoint does? CKA of features, merge × task."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _grid as grid
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "A cell compares the features that a merge and a task's own checkpoint give the same inputs: 1 is alike but for a "
    "turn and a scale, 0 has nothing in common. Blue: closer to the own checkpoint than the base is, "
    "orange: further away."
)


@chart(
    "Features of the merges",
    question="Does a merge see a task's inputs as the task's own checkpoint does?",
    lens="cka",
    reading=READING,
)
def cka(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Heat-map of linear CKA, coloured by its distance to that of the base; the mean over tasks in the last column.

    Args:
        data: one row per merge × task of the lens ``cka``: ``run``, ``task``, ``cka`` in [0, 1], optionally ``label``,
            ``base``, ``samples``, ``task_title``.
    """
    rows = style.take(data, ("cka", "run", "task"), ("cka",))
    if not len(rows):
        return style.empty("No merge has been compared yet.", theme, reading=READING, revision="cka")
    rows = rows.assign(run=rows["run"].astype(str), task=rows["task"].astype(str))
    rows["base"] = pd.to_numeric(rows["base"], errors="coerce") if "base" in rows else np.nan
    runs, tasks = grid.labels_of(rows), style.titles(rows, "task")
    values, base = (grid.cells(rows, "run", list(runs), list(tasks), column) for column in ("cka", "base"))
    columns = {**tasks, grid.MEAN: "mean"}
    values, base = grid.with_means(values), grid.with_means(base)
    made = grid.Grid(
        "run",
        runs,
        columns,
        np.where(np.isnan(base), 0.0 * values, values - base),
        np.array([[f"{v:.2f}" for v in row] for row in values]),
        np.stack([values, base], axis=-1),
        "<b>%{text}</b> on <b>%{x}</b>:<br>CKA with the own checkpoint %{customdata[0]:.3f}"
        f"{'' if np.isnan(base).all() else ' (base %{customdata[1]:.3f})'}.",
    )
    ranked = sorted(zip(runs.values(), values[:, -1], strict=True), key=lambda pair: -pair[1])
    samples = f", {int(rows['samples'].iloc[0])} inputs a task" if "samples" in rows else ""
    return grid.draw(
        made,
        theme,
        narrow,
        name="cka",
        ends=("further away", "closer than the base"),
        unit="",
        notes=[f"linear CKA with the task's own checkpoint{'' if narrow else f', from 0 to 1{samples}'}"],
        reading=READING,
        summary="Mean CKA with the tasks' own checkpoints: "
        + ", ".join(f"{label} {style.number(float(mean), False)}" for label, mean in ranked[:8])
        + ".",
    )
