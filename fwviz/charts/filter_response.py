"""What does filtering the task vectors do to the merged model? Accuracy and loss over the cutoff."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Blue: only what is finer than the cutoff is merged; orange: only what is coarser. The dashed line is the merge "
    "without a filter: where blue lies above it, the filter helps. Thin lines: single tasks under the high-pass."
)
LABELLED = 8  # tasks whose lines can be named at their ends
ROOM = 46  # px at the right for the part of those names that lies beyond the axis
WORDS = {"high": "fine part kept", "band": "band kept", "low": "coarse part kept"}


@chart(
    "Filter response",
    question="What does filtering the task vectors do to the merged model?",
    lens="filter_response",
    reading=READING,
)
def filter_response(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Two panels over the cutoff ρ: mean accuracy (with each task's) and mean loss in nats, one line per band.

    Args:
        data: rows band × cutoff × task of the lens ``filter_response``: ``band``, ``cutoff``, ``task`` ("joint" is the
            mean), ``accuracy`` in [0, 1], optionally ``loss``, ``unfiltered``, ``task_title``.
    """
    rows = style.take(data, ("accuracy", "cutoff", "band", "task"), ("accuracy", "cutoff"))
    if not len(rows):
        return style.empty("Nothing measured yet: press Measure.", theme, reading=READING, revision="filter_response")
    rows = rows.assign(band=rows["band"].astype(str), task=rows["task"].astype(str))
    rows = rows.assign(loss=pd.to_numeric(rows["loss"], errors="coerce") if "loss" in rows else np.nan)
    rows = rows.sort_values("cutoff", kind="stable")
    colours = style.palette(theme)
    shades = {"high": colours.wanted, "low": colours.unwanted, "band": colours.muted}
    tasks = [task for task in dict.fromkeys(data["task"].astype(str)) if task != "joint"]
    styles = style.task_styles(tasks, theme)
    names = style.titles(rows, "task")
    traces: list[dict[str, Any]] = []
    for task in tasks:
        part = rows[(rows["task"] == task) & (rows["band"] == "high")]
        if not len(part) or len(tasks) > 16:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": style.safe(names[task]),
                "yaxis": "y2",
                "x": style.f4(part["cutoff"]),
                "y": style.f4(part["accuracy"]),
                "line": {"color": styles[task].colour, "width": 1.25, "dash": styles[task].dash},
                "opacity": 0.7,
                "customdata": [task] * len(part),
                "hovertemplate": f"<b>{style.short(names[task], 40)}</b>: %{{y:.1%}} with ρ ≥ %{{x:.2f}} kept"
                "<extra></extra>",
                "meta": style.names("task", of={"task": task}),
            }
        )
    joint = rows[rows["task"] == "joint"]
    joint = joint if len(joint) else rows
    for band in dict.fromkeys(joint["band"]):
        part = joint[joint["band"] == band]
        shade = shades.get(band, colours.ink)
        for axis, column in (("y2", "accuracy"), ("y", "loss")):
            known = part[np.isfinite(part[column].to_numpy(dtype=float))]
            if not len(known):
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": WORDS.get(band, style.safe(band)),
                    "yaxis": axis,
                    "x": style.f4(known["cutoff"]),
                    "y": style.f4(known[column]),
                    "line": {"color": shade, "width": 2.5},
                    "marker": {"size": 7, "color": shade, "line": {"width": 1.5, "color": colours.surface}},
                    "hovertext": [_sentence(row, band) for row in known.to_dict("records")],
                    "hovertemplate": "%{hovertext}<extra></extra>",
                }
            )
    labels = _task_labels(rows, names, styles, theme, narrow) if len(tasks) <= LABELLED else []
    key = " &nbsp; ".join(
        style.coloured(f"● {WORDS.get(band, style.safe(band))}", shades.get(band, colours.ink))
        for band in dict.fromkeys(joint["band"])
    )
    whole = pd.to_numeric(joint["unfiltered"], errors="coerce").dropna() if "unfiltered" in joint else pd.Series()
    shapes = []
    if len(whole):
        line = {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "yref": "y2",
            "y0": whole.iloc[0],
            "y1": whole.iloc[0],
        }
        shapes.append(line | {"line": {"color": colours.ink, "width": 1.25, "dash": "dash"}})
    base = style.layout(
        theme,
        400,
        summary=_summary(joint, float(whole.iloc[0]) if len(whole) else None),
        reading=READING,
        revision="filter_response",
        margin=(48, ROOM if labels else 14, 44, 42),
        narrow=narrow,
    )
    changes = {
        "xaxis": style.axis(theme, range=[-0.02, 1.02], dtick=0.25 if narrow else 0.1, anchor="y"),
        "yaxis": style.axis(theme, domain=[0, 0.3], nticks=4),
        "yaxis2": style.axis(theme, domain=[0.42, 1], tickformat=".0%", nticks=6),
        "annotations": [
            *labels,
            style.note(key, theme, yshift=22),
            style.note("<b>quick accuracy</b>, mean over tasks (validation)", theme, yshift=5),
            style.note("<b>loss</b> (nats)", theme, y=0.3, yshift=4),
            style.note("cutoff ρ (0 = everything, 1 = finest)", theme, y=0, yanchor="top", yshift=-22),
        ],
        "shapes": shapes,
    }
    return style.figure(traces, base | changes)


def _task_labels(
    rows: pd.DataFrame, names: dict[str, str], styles: dict[str, style.TaskStyle], theme: style.Theme, narrow: bool
) -> list[dict[str, Any]]:
    """The tasks' names behind the ends of their thin lines, moved apart where they would overlap."""
    single = rows[(rows["band"] == "high") & (rows["task"] != "joint")]
    if not len(single):
        return []
    ends = single.groupby("task", sort=False).tail(1)
    low, high = float(rows["accuracy"].min()), float(rows["accuracy"].max())
    places = style.spread([float(y) for y in ends["accuracy"]], (high - low) / 12, low, high)
    return [
        style.note(
            style.coloured(style.short(names[row.task], 12 if narrow else 16), styles[row.task].colour),
            theme,
            xref="x",
            x=float(row.cutoff),
            xshift=8,
            yref="y2",
            y=place,
            yanchor="middle",
            yshift=0,
            bgcolor=style.alpha(style.palette(theme).surface, 0.8),
        )
        for row, place in zip(ends.itertuples(), places, strict=True)
    ]


def _sentence(row: dict[str, Any], band: str) -> str:
    what = {"high": "ρ ≥", "low": "ρ <", "band": "a band from"}.get(band, style.safe(band))
    parts = [f"<b>{what} {row['cutoff']:.2f} kept</b>: accuracy {style.percent(row['accuracy'])}"]
    if row.get("unfiltered") is not None and np.isfinite(float(row["unfiltered"])):
        parts.append(f"{style.points(row['accuracy'] - float(row['unfiltered']))} against no filter")
    if np.isfinite(row["loss"]):
        parts.append(f"loss {style.number(row['loss'], False)} nats")
    return "<br>".join(parts)


def _summary(joint: pd.DataFrame, unfiltered: float | None) -> str:
    high = joint[joint["band"] == "high"]
    part = high if len(high) else joint
    best = part.loc[part["accuracy"].idxmax()]
    said = f"The best cutoff is {best['cutoff']:g} with an accuracy of {style.percent(float(best['accuracy']))}"
    return said + (f"; without a filter {style.percent(unfiltered)}." if unfiltered is not None else ".")
