"""What does a merge do on tasks that nobody asked it for? Accuracy, merge × task."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _grid as grid
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Tasks of the pool that no merge here had a checkpoint of or was tuned on. The number is the accuracy, the colour "
    "what merging changed: blue, the merge is better there than the base; orange, it has forgotten something."
)


@chart(
    "Tasks left out",
    question="What does a merge do on tasks that nobody asked it for?",
    lens="left_out",
    reading=READING,
)
def left_out(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Heat-map of the accuracy on unseen tasks, coloured by its distance to the base; the mean in the last column.

    Args:
        data: one row per run × task of the lens ``left_out``: ``run``, ``task``, ``accuracy`` in [0, 1], optionally
            ``label``, ``base``, ``individual``, ``task_title``.
    """
    rows = style.take(data, ("accuracy", "run", "task"), ("accuracy",))
    if not len(rows):
        return style.empty("No merge has been tested yet.", theme, reading=READING, revision="left_out")
    rows = rows.assign(run=rows["run"].astype(str), task=rows["task"].astype(str))
    for column in ("base", "individual"):
        rows[column] = pd.to_numeric(rows[column], errors="coerce") if column in rows else np.nan
    runs, tasks = grid.labels_of(rows), style.titles(rows, "task")
    values, base, own = (
        grid.with_means(grid.cells(rows, "run", list(runs), list(tasks), column))
        for column in ("accuracy", "base", "individual")
    )
    change = np.where(np.isnan(base), 0.0 * values, values - base)
    hover = "<b>%{text}</b> on <b>%{x}</b>:<br>accuracy %{customdata[0]:.1%}"
    if not np.isnan(base).all():
        hover += " (%{customdata[3]:+.1f} points), base %{customdata[1]:.1%}"
    if not np.isnan(own).all():
        hover += ", own checkpoint %{customdata[2]:.1%}"
    made = grid.Grid(
        "run",
        runs,
        {**tasks, grid.MEAN: "mean"},
        100 * change,
        np.array([[f"{v:.0%}" if np.isfinite(v) else "" for v in row] for row in values]),
        np.stack([values, base, own, 100 * change], axis=-1),
        f"{hover}.",
    )
    ranked = sorted(zip(runs.values(), values[:, -1], strict=True), key=lambda pair: -pair[1])
    mean = float(base[0, -1])
    against = f"; base {style.percent(mean)}" if np.isfinite(mean) else ""
    return grid.draw(
        made,
        theme,
        narrow,
        name="left_out",
        ends=("worse than the base", "better"),
        unit=" points",
        notes=[f"accuracy on {len(tasks)} task{'s' * (len(tasks) != 1)} left out{against} on average"],
        reading=READING,
        summary=f"Mean accuracy on {len(tasks)} tasks left out: "
        + ", ".join(f"{label} {style.percent(float(value))}" for label, value in ranked[:8])
        + f"{against}.",
    )
