"""The final score of a merge, task by task, between the base and each task's own checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Bar: the merged model. Ring: the base it started from. Upright mark: the checkpoint fine-tuned on that task "
    "alone. Diamond: the plain average of all checkpoints. Cross: one model trained on all tasks of the pool."
)
ROW = 34
LOOKS: dict[str, tuple[str, str, int]] = {
    "base": ("base", "circle-open", 9),
    "average": ("average merge", "diamond-open", 10),
    "mtl": ("multi-task", "x-thin", 8),
    "individual": ("own checkpoint", "line-ns", 14),
}


@chart("Final accuracy", question="How good is the merged model, task by task?", lens="results", reading=READING)
def accuracy_bars(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """One bar per task and one for their average, with the base, own checkpoint and average merge as marks.

    Args:
        data: rows of the lens ``results``: ``series`` ("merged", "base", "individual", "mtl", "average"), ``task``,
            ``accuracy`` in [0, 1], optionally ``count`` (test images), ``task_title``.
    """
    rows = style.take(data, ("series", "task", "accuracy"), ("accuracy",))
    rows = rows.assign(task=rows["task"].astype(str))
    if not len(rows):
        return style.empty("No final scores yet: let a run finish.", theme, reading=READING, revision="accuracy_bars")
    names = style.titles(rows, "task")
    colours, styles = style.palette(theme), style.task_styles(names, theme)
    table = rows.drop_duplicates(["task", "series"], keep="last").pivot(
        index="task", columns="series", values="accuracy"
    )
    table = table.reindex(list(names)).reindex(columns=["merged", *LOOKS])
    # The average leads: it is what runs are compared by, and only over all tasks.
    table = pd.concat([table.mean(skipna=False).to_frame().T, table])
    labels = [
        style.coloured("average", colours.ink, bold=True),
        *(style.coloured(style.short(t, 16 if narrow else 24), styles[k].colour) for k, t in names.items()),
    ]
    shades = [colours.ink, *(styles[task].colour for task in names)]
    titles = ["the average of the tasks", *names.values()]
    at = np.arange(len(table), dtype=np.int16)
    hover = [_sentence(title, row) for title, (_, row) in zip(titles, table.iterrows(), strict=True)]
    known = np.isfinite(table["merged"].to_numpy(dtype=float))
    ids = ["", *names]
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": "merged",
            "x": style.f4(table["merged"][known]),
            "y": at[known],
            "marker": {
                "color": [shade for shade, k in zip(shades, known, strict=True) if k],
                "opacity": 0.85,
                "cornerradius": 3,
                "line": {"width": 0},
            },
            "customdata": [ids[i] for i in at[known]],
            "hovertext": [hover[i] for i in at[known]],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "meta": style.names("task"),
        }
    ]
    for series, (title, symbol, size) in LOOKS.items():
        values = table[series].to_numpy(dtype=float)
        kept = np.isfinite(values)
        if not kept.any():
            continue
        width = 3.0 if series == "individual" else 1.75
        # Over its bar a mark in the ink colour would vanish into the average's, so each wears a halo of the surface.
        words = [f"{title}: {style.percent(v)}<br>{hover[i]}" for i, v in zip(at[kept], values[kept], strict=True)]
        speaks: dict[str, Any] = {"hovertext": words, "hovertemplate": "%{hovertext}<extra></extra>"}
        halo = (width + 2.5, colours.surface, {"hoverinfo": "skip"})
        for stroke, colour, hovered in (halo, (width, colours.ink, speaks)):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": title,
                    "x": style.f4(values[kept]),
                    "y": at[kept],
                    "marker": {
                        "symbol": symbol,
                        "size": size,
                        "color": colour,
                        "line": {"width": stroke, "color": colour},
                    },
                    **hovered,
                }
            )
    notes = [
        style.note(
            f"<b>{style.percent(float(value))}</b>",
            theme,
            x=1,
            xanchor="left",
            xshift=10,
            yref="y",
            y=int(i),
            yanchor="middle",
            yshift=0,
            font={"size": style.TEXT, "color": shades[i]},
        )
        for i, value in enumerate(table["merged"])
        if np.isfinite(value)
    ]
    shown = [series for series in LOOKS if table[series].notna().any()]
    signs = {"base": "○", "average": "◇", "mtl": "×", "individual": "┃"}
    key = "   ".join(f"{signs[series]} {LOOKS[series][0]}" for series in shown)
    left = style.text_width(labels) + 14
    notes.append(style.note(key, theme, y=0, yanchor="top", yshift=-24, xshift=-left if narrow else 0))
    # The average stands apart from the tasks.
    rule = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": 0.5,
        "y1": 0.5,
        "line": {"color": colours.grid, "width": 2},
    }
    base = style.layout(
        theme,
        ROW * len(table) + 8 + 46,
        summary=_summary(table, names),
        reading=READING,
        revision="accuracy_bars",
        margin=(left, 62, 8, 46),
        narrow=True,
    )
    changes = {
        "bargap": 0.42,
        "xaxis": style.axis(theme, range=[0, 1.015], tickformat=".0%", dtick=0.5 if narrow else 0.2, fixedrange=True),
        "yaxis": style.axis(
            theme,
            tickmode="array",
            tickvals=at.tolist(),
            ticktext=labels,
            range=[len(table) - 0.5, -0.5],
            showgrid=False,
            ticklabelstandoff=8,
            tickfont={"size": style.TEXT, "color": colours.ink},
            fixedrange=True,
            automargin="left",
        ),
        "shapes": [rule],
        "annotations": notes,
    }
    return style.figure(traces, base | changes)


def _sentence(title: str, row: pd.Series) -> str:
    parts = [f"On <b>{style.safe(title)}</b> the merged model reaches {style.percent(float(row['merged']))}."]
    for series, words in (
        ("base", "the base"),
        ("individual", "its own checkpoint"),
        ("mtl", "one model trained on all tasks"),
        ("average", "the average merge"),
    ):
        if np.isfinite(row[series]):
            difference = f", {style.points(row['merged'] - row[series])}" if np.isfinite(row["merged"]) else ""
            parts.append(f"Against {words} ({style.percent(float(row[series]))}){difference}.")
    return "<br>".join(parts)


def _summary(table: pd.DataFrame, names: dict[str, str]) -> str:
    mean = table.iloc[0]
    marks = [f"{LOOKS[s][0]} {style.percent(float(mean[s]))}" for s in LOOKS if np.isfinite(mean[s])]
    tasks = ", ".join(
        f"{title} {style.percent(float(table.loc[task, 'merged']))}" for task, title in list(names.items())[:8]
    )
    return f"Average accuracy {style.percent(float(mean['merged']))} ({', '.join(marks) or 'no marks'}): {tasks}."
