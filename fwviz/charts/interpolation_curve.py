"""The loss and the accuracy on the straight way from one model to another, with the barrier marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "From left to right the weights go straight from one model to the other. The barrier is the most that the loss "
    "rises above the dashed chord between both ends; without one, their average loses no more than its ends on average."
)
UPPER, LOWER = 0.44, 0.34  # where the two panels meet


@chart("Between two models", question="Is there a hill between two models?", lens="interpolation", reading=READING)
def interpolation_curve(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Two panels over γ: loss in nats with chord and barrier, and accuracy; bold the mean, thin the tasks.

    Args:
        data: rows task × γ of the lens ``interpolation``: ``task``, ``gamma``, ``loss``, ``accuracy``, optionally
            ``task_title``, ``start_title``, ``end_title``. Several ways: the last is drawn.
    """
    rows = style.take(data, ("task", "gamma", "loss", "accuracy"), ("gamma", "loss"))
    if not len(rows):
        return style.empty("Nothing measured yet: choose two models.", theme, reading=READING, revision="interpolation")
    if "way" in rows:
        rows = rows[rows["way"] == rows["way"].iloc[-1]]
    rows = rows.assign(
        task=rows["task"].astype(str), accuracy=pd.to_numeric(rows["accuracy"], errors="coerce")
    ).drop_duplicates(["task", "gamma"])
    names = style.titles(rows, "task")
    main = "joint" if "joint" in names else next(iter(names))
    others = [name for name in names if name != main]
    colours = style.palette(theme)
    styles = style.task_styles([name for name in names if name != "joint"], theme)
    start, end = (_title(rows, f"{side}_title", side) for side in ("start", "end"))
    traces: list[dict[str, Any]] = []
    for name in [*others, main]:
        part = rows[rows["task"] == name].sort_values("gamma", kind="stable")
        colour = colours.ink if name == "joint" else styles[name].colour
        title = "all tasks together" if name == "joint" else names[name]
        traces += _pair(part, title, colour, start, end, bold=name == main)
    joint = rows[rows["task"] == main].sort_values("gamma", kind="stable")
    height, at, chord = barrier(joint)
    traces.insert(0, _chord(joint, colours.muted))
    notes = [
        style.note("<b>loss</b> (nats)", theme, y=1, yshift=4),
        style.note("<b>accuracy</b>", theme, y=LOWER, yshift=4),
    ]
    shapes = []
    if height > 0:
        shapes.append(
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "y0": chord,
                "y1": chord + height,
                "xref": "x",
                "yref": "y",
                "line": {"color": colours.unwanted, "width": 3},
            }
        )
    notes.append(
        style.note(
            style.coloured(f"barrier {style.number(max(height, 0.0), signed=False)} nats", colours.unwanted, bold=True)
            if height > 0
            else style.coloured("no barrier", colours.wanted, bold=True),
            theme,
            xref="x",
            yref="y",
            x=at if height > 0 else 0.5,
            y=chord + max(height, 0.0),
            xanchor="center" if 0.2 < at < 0.8 else "left" if at <= 0.2 else "right",
            yshift=6,
        )
    )
    most = 3 if narrow else 8
    key = "  ".join(
        style.coloured(f"● {style.short(names[n], 14)}", styles[n].colour) for n in others[:most] if n in styles
    )
    notes.append(style.note(key + "  …" * (len(others) > most), theme, y=0, yanchor="top", yshift=-40))
    base = style.layout(
        theme,
        380,
        summary=_summary(joint, start, end, height, at),
        reading=READING,
        revision="interpolation",
        margin=(48, max(20, style.text_width([style.short(end, 14)], style.TEXT) // 2), 28, 62),
        narrow=narrow,
    )
    ticks = {
        "tickmode": "array",
        "tickvals": [0, 0.25, 0.5, 0.75, 1],
        "ticktext": [style.short(start, 14), "25 %", "half way", "75 %", style.short(end, 14)],
        "ticklabeloverflow": "allow",
    }
    known = rows["accuracy"].notna().any()
    changes: dict[str, Any] = {
        "xaxis": style.axis(theme, range=[-0.03, 1.03], anchor="y2", **ticks),
        "yaxis": style.axis(theme, domain=[UPPER, 1], nticks=5),
        "yaxis2": style.axis(theme, domain=[0, LOWER], nticks=4, tickformat=".0%", anchor="x"),
        "annotations": notes,
        "shapes": shapes,
    }
    if not known:
        notes.append(style.note("not measured", theme, x=0.5, y=0.15, xanchor="center", yanchor="middle"))
    return style.figure(traces, base | changes)


def barrier(part: pd.DataFrame) -> tuple[float, float, float]:
    """(height above the chord, where, chord there) of one curve sorted by γ; height 0 where it stays below."""
    gamma, loss = (part[name].to_numpy(dtype=float) for name in ("gamma", "loss"))
    span = gamma[-1] - gamma[0]
    share = (gamma - gamma[0]) / span if span > 0 else np.zeros_like(gamma)
    chord = (1 - share) * loss[0] + share * loss[-1]
    top = int(np.argmax(loss - chord))
    # Rounding at the ends, where the curve is its own chord, is no hill.
    height = float(loss[top] - chord[top])
    return (height if height > 1e-9 * max(abs(loss[top]), 1e-30) else 0.0), float(gamma[top]), float(chord[top])


def _title(rows: pd.DataFrame, column: str, default: str) -> str:
    return str(rows[column].iloc[0]) if column in rows else default


def _chord(joint: pd.DataFrame, colour: str) -> dict[str, Any]:
    ends = joint.iloc[[0, -1]]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "chord",
        "x": style.f4(ends["gamma"]),
        "y": style.f4(ends["loss"]),
        "line": {"color": colour, "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }


def _pair(part: pd.DataFrame, title: str, colour: str, start: str, end: str, *, bold: bool) -> list[dict[str, Any]]:
    width = 2.75 if bold else 1.25
    way = f"from {style.short(start, 30)} to {style.short(end, 30)}"
    head = f"<b>{style.safe(title)}</b><br>%{{x:.0%}} of the way {way}<br>"
    shared = {
        "type": "scatter",
        "mode": "lines+markers" if bold and len(part) <= 60 else "lines",
        "name": style.short(title, 24),
        "line": {"color": colour, "width": width},
        "marker": {"size": 5, "color": colour},
    }
    gamma, accuracy = style.f4(part["gamma"]), style.f4(part["accuracy"])
    known = np.isfinite(accuracy)
    loss = {"x": gamma, "y": style.f4(part["loss"]), "hovertemplate": f"{head}loss %{{y:.3g}} nats<extra></extra>"}
    traces = [shared | loss]
    if known.any():
        judged = {"x": gamma[known], "y": accuracy[known], "yaxis": "y2"}
        traces.append(shared | judged | {"hovertemplate": f"{head}accuracy %{{y:.1%}}<extra></extra>"})
    return traces


def _summary(joint: pd.DataFrame, start: str, end: str, height: float, at: float) -> str:
    first, last = (style.number(float(joint["loss"].iloc[i]), signed=False) for i in (0, -1))
    hill = (
        f"a barrier of {style.number(height, signed=False)} nats at {style.percent(at, 0)} of the way"
        if height > 0
        else "no barrier"
    )
    return f"From {start} ({first} nats) to {end} ({last} nats): {hill}."
