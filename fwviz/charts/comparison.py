"""Several runs side by side: accuracy per task, average and cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "One row per run, the best on top, runs of fewer tasks below. The large dot is its average accuracy, small dots "
    "are the tasks; the dotted lines are the base, one model trained on all tasks of the pool, and the tasks' own "
    "checkpoints. A short spread means no task was sacrificed; kept are experts, masks and routers that a merge needs "
    "beside one model."
)
ROW = 40
LEVEL = 13  # px between the names of two marks, one above the other


@chart("Runs compared", question="Which method merges best, and at what cost?", lens="comparison", reading=READING)
def comparison(
    data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False, normalised: bool = False
) -> go.Figure:
    """Dot plot: rows are runs sorted by average, x is accuracy, dots are tasks; what a run cost stands at the right.

    Args:
        data: rows run × task of the lens ``comparison``: ``run``, ``task``, ``accuracy`` in [0, 1], optionally
            ``label``, ``normalised`` (accuracy ÷ own checkpoint's), ``base``, ``mtl``, ``individual``, ``seconds``,
            ``peak_memory_bytes``, ``stored_bytes`` (kept beside one model), ``rank`` (on the task), ``task_title``.
        normalised: draw the normalised score of the paper instead of the accuracy.
    """
    value = "normalised" if normalised else "accuracy"
    rows = style.take(data, ("run", "task", value), (value,))
    if not len(rows):
        return style.empty(
            "Nothing to compare yet: choose two finished runs.", theme, reading=READING, revision="comparison"
        )
    rows = rows.assign(task=rows["task"].astype(str), run=rows["run"].astype(str), value=rows[value].astype(float))
    names = style.titles(rows, "task")
    colours, styles = style.palette(theme), style.task_styles(names, theme)
    runs = rows.groupby("run", sort=False).agg(mean=("value", "mean"), tasks=("task", "nunique"))
    for column, default in (
        ("label", ""),
        ("seconds", np.nan),
        ("peak_memory_bytes", np.nan),
        ("stored_bytes", np.nan),
    ):
        runs[column] = rows.groupby("run", sort=False)[column].first() if column in rows else default
    runs["rank"] = rows.groupby("run", sort=False)["rank"].mean() if "rank" in rows else np.nan
    runs["label"] = [label if isinstance(label, str) and label else run for run, label in runs["label"].items()]
    # Averages over different tasks are not comparable: complete runs first.
    runs = runs.sort_values(["tasks", "mean"], ascending=False, kind="stable")
    runs["row"] = np.arange(len(runs), dtype=np.int16)
    rows["row"] = rows["run"].map(runs["row"])
    low, high = rows.groupby("run")["value"].min(), rows.groupby("run")["value"].max()
    span_x = [v for run in runs.index for v in (low[run], high[run], np.nan)]
    span_y = [v for row in runs["row"] for v in (row, row, np.nan)]
    titles = {run: style.safe(label) for run, label in runs["label"].items()}
    unit = "of its own checkpoint" if normalised else "accuracy"
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "spread",
            "x": style.f4(span_x),
            "y": style.f4(span_y),
            "line": {"color": colours.grid, "width": 7},
            "hoverinfo": "skip",
        }
    ]
    for task, title in names.items():
        part = rows[rows["task"] == task]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": style.short(title, 24),
                "x": style.f4(part["value"]),
                "y": part["row"].to_numpy(np.int16),
                "marker": {"size": 8, "color": styles[task].colour, "opacity": 0.9},
                "customdata": part["run"].tolist(),
                "hovertext": [
                    f"{titles[r.run]}<br>on <b>{style.safe(title)}</b>: {style.percent(r.value)} {unit}."
                    for r in part.itertuples()
                ],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "meta": style.names("run", task=task),
            }
        )
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "average",
            "x": style.f4(runs["mean"]),
            "y": runs["row"].to_numpy(np.int16),
            "marker": {"size": 15, "color": colours.ink, "line": {"width": 2, "color": colours.surface}},
            "customdata": runs.index.tolist(),
            "hovertext": [_sentence(titles[run], row, unit) for run, row in runs.iterrows()],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "meta": style.names("run"),
        }
    )
    labels = [style.short(label, 38) if narrow else _two_lines(label, colours) for label in runs["label"]]
    notes = [_result(row, len(names), theme, narrow) for _, row in runs.iterrows()]
    if narrow:  # names stand above their rows, so that the rows keep their width
        notes += [
            style.note(
                label,
                theme,
                yref="y",
                y=i,
                yanchor="bottom",
                yshift=8,
                bgcolor=style.alpha(colours.surface, 0.85),
                font={"color": colours.ink, "size": style.SMALL},
            )
            for i, label in enumerate(labels)
        ]
    marks = {} if normalised else _marks(rows)
    values = [float(rows["value"].min()), float(rows["value"].max()), *marks.values()]
    floor = max(0.0, math.floor(10 * min(values) - 0.5) / 10)
    top = min(math.ceil(10 * max(values) + 0.5) / 10, max(1.015, max(values) + 0.03))
    dotted = {"color": colours.zero, "width": 1.25, "dash": "dot"}
    shapes = [
        {"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": dotted, "layer": "below"}
        for x in marks.values()
    ]
    names_of_marks = _mark_names(marks, floor, top, theme, narrow)
    notes += names_of_marks
    above = max([40, *(23 + int(note["yshift"]) for note in names_of_marks)])
    left = (
        14 if narrow else style.text_width([line for label in labels for line in label.split("<br>")], style.TEXT) + 14
    )
    length = 12 if narrow or len(names) > 5 else 26
    keys = [style.coloured(f"● {style.short(t, length)}", styles[k].colour) for k, t in list(names.items())[:8]]
    keys += ["…"] * (len(names) > len(keys))
    broad = 3 if narrow else len(keys)
    lines = ["  ".join(keys[i : i + broad]) for i in range(0, len(keys), broad)]
    notes.append(style.note("<br>".join(lines), theme, y=0, yanchor="top", yshift=-24, align="left"))
    below = 46 + 15 * (len(lines) - 1)
    results = style.text_width(line for note in notes[: len(runs)] for line in note["text"].split("<br>"))
    row_height = 50 if narrow else ROW
    base = style.layout(
        theme,
        row_height * len(runs) + above + below,
        summary=_summary(runs, unit),
        reading=READING,
        revision=f"comparison {value}",
        margin=(left, max(62, results + 12) if narrow else 170, above, below),
        narrow=True,
    )
    changes = {
        "xaxis": style.axis(theme, range=[floor, top], tickformat=".0%", nticks=5 if narrow else 9, fixedrange=True),
        "yaxis": style.axis(
            theme,
            tickmode="array",
            tickvals=runs["row"].tolist(),
            ticktext=labels,
            showticklabels=not narrow,
            range=[len(runs) - 0.5, -0.5 - 0.25 * narrow],
            showgrid=False,
            ticklabelstandoff=8,
            tickfont={"size": style.TEXT, "color": colours.ink},
            fixedrange=True,
            automargin="left",
        ),
        "shapes": shapes,
        "annotations": notes,
    }
    return style.figure(traces, base | changes)


def _marks(rows: pd.DataFrame) -> dict[str, float]:
    """The average over tasks of the base, the multi-task model and the tasks' own checkpoints, where all are known."""
    tasks = rows.drop_duplicates("task")
    means = {
        c: float(pd.to_numeric(tasks[c], errors="coerce").mean(skipna=False)) for c in style.REFERENCES if c in tasks
    }
    return {column: mean for column, mean in means.items() if math.isfinite(mean)}


def _mark_names(
    marks: dict[str, float], floor: float, top: float, theme: style.Theme, narrow: bool
) -> list[dict[str, Any]]:
    """What each mark is called, above the plot; names that would touch stand one above the other."""
    width = 250 if narrow else 560  # px of the plot, or a little less
    ends: list[float] = []  # of the last name at each level
    made = []
    for column, x in sorted(marks.items(), key=lambda mark: mark[1]):
        text = f"{style.REFERENCES[column]} {style.percent(x, 0)}"
        place, long = (x - floor) / (top - floor), style.text_width([text]) / width
        anchor = "left" if place < long / 2 else "right" if place > 1 - long / 2 else "center"
        start = place - long * {"left": 0.0, "center": 0.5, "right": 1.0}[anchor]
        level = next((k for k, end in enumerate(ends) if start > end), len(ends))
        ends[level : level + 1] = [start + long]
        made.append(style.note(text, theme, xref="x", x=x, xanchor=anchor, yshift=4 + LEVEL * level))
    return made


def _two_lines(label: str, colours: style.Palette) -> str:
    """The method above, what is particular to the run below it."""
    method, _, rest = label.partition(f" {style.DOT} ")
    below = f"<br>{style.coloured(style.short(rest, 34), colours.muted)}" if rest else ""
    return style.short(method, 30) + below


def _result(row: pd.Series, tasks: int, theme: style.Theme, narrow: bool) -> dict[str, Any]:
    """The average, and beside it what it cost; of how many of the ``tasks`` it is one, where it is not of all."""
    colours = style.palette(theme)
    text = style.coloured(style.percent(float(row["mean"])), colours.ink, bold=True)
    if np.isfinite(row["seconds"]) and not narrow:
        text += f"   {style.duration(float(row['seconds']))}"
        if np.isfinite(row["peak_memory_bytes"]) and row["peak_memory_bytes"] > 0:
            text += f" {style.DOT} {style.size(float(row['peak_memory_bytes']))}"
    if row["tasks"] < tasks:
        text += f"<br>{row['tasks']} of {tasks} tasks"
    if row["stored_bytes"] > 0:
        text += f"<br>+ {style.size(float(row['stored_bytes']))}{'' if narrow else ' kept beside it'}"
    return style.note(
        text,
        theme,
        x=1,
        xanchor="left",
        xshift=10,
        yref="y",
        y=int(row["row"]),
        yanchor="middle",
        yshift=0,
        align="left",
    )


def _sentence(title: str, row: pd.Series, unit: str) -> str:
    cost = f"<br>It took {style.duration(float(row['seconds']))}." if np.isfinite(row["seconds"]) else ""
    kept = f"<br>It keeps {style.size(float(row['stored_bytes']))} beside the model." if row["stored_bytes"] > 0 else ""
    place = f"<br>Rank {row['rank']:.1f} on average, 1 is the best." if np.isfinite(row["rank"]) else ""
    return (
        f"<b>{title}</b><br>{style.percent(row['mean'])} {unit} on average over {row['tasks']} tasks."
        f"{place}{cost}{kept}"
    )


def _summary(runs: pd.DataFrame, unit: str) -> str:
    ranked = [f"{row['label']} {style.percent(row['mean'])}" for _, row in runs.head(8).iterrows()]
    return f"{len(runs)} run{'s' * (len(runs) != 1)} by average ({unit}): {', '.join(ranked)}."
