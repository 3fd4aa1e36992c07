"""The Frank-Wolfe gap and the calibration loss over the iterations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Above, the calibration loss. Below, the gap: the most that any vertex still promises. It need not reach "
    "zero: for a network the bound keeps a constant that depends on curvature."
)


@chart("Gap and loss", question="How much could any checkpoint still give?", lens="gap", reading=READING)
def gap_curve(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Two panels over t: loss ℓ(θ_t) in nats and gap g_t = max_s ⟨−∇ℓ(θ_t), s − θ_t⟩ in nats.

    Args:
        data: one row per iterate of the lens ``gap``: ``t``, ``gap``, ``loss``, optionally ``step_size``, ``vertices``
            (text) and ``in_hull``.
    """
    rows = style.take(data, ("t", "gap", "loss"), ("t",))
    rows = rows.assign(
        gap=pd.to_numeric(rows["gap"], errors="coerce"), loss=pd.to_numeric(rows["loss"], errors="coerce")
    )
    rows = rows[np.isfinite(rows["gap"].astype(float)) | np.isfinite(rows["loss"].astype(float))].sort_values("t")
    if not len(rows):
        return style.empty("No iterations yet: press Run.", theme, reading=READING, revision="gap_curve")
    colours = style.palette(theme)
    t = rows["t"].to_numpy(dtype=float)
    facts = _facts(rows)
    told = np.isfinite(rows["gap"].to_numpy(dtype=float))  # what a step did is told once, with its gap if it has one
    traces: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    everywhere = bool(np.isfinite(rows[["gap", "loss"]].to_numpy(dtype=float)).all())
    steps = "lines+markers" if len(rows) <= 80 else "lines"
    for axis, column, colour, fill in (("y2", "loss", colours.ink, False), ("y", "gap", colours.wanted, True)):
        values = rows[column].to_numpy(dtype=float)
        known = np.isfinite(values)
        x, y = style.f4(t[known]), style.f4(values[known])
        head = "calibration loss %{y:.3~g} nats" if column == "loss" else "gap %{y:.3~g} nats"
        tells = told if column == "gap" else ~told
        words = [text * bool(tell) for text, tell, keep in zip(facts, tells, known, strict=True) if keep]
        traces.append(
            {
                "type": "scatter",
                "mode": steps,
                "name": column,
                "x": x,
                "y": y,
                "yaxis": axis,
                "line": {"color": colour, "width": 2.25},
                "marker": {"size": 6, "color": colour, "line": {"width": 1.5, "color": colours.surface}},
                **({"fill": "tozeroy", "fillcolor": style.alpha(colour, 0.13)} if fill else {}),
                **({"hovertext": words} if any(words) else {}),
                "hoverinfo": "y",  # not t once more beside the axis
                "hovertemplate": f"<b>t = %{{x}}</b><br>{head}{'%{hovertext}' * any(words)}<extra></extra>",
                "meta": style.names(
                    "t", like=0 if everywhere and traces else None, last=len(notes) if known.any() else None
                ),
            }
        )
        if known.any():
            notes.append(_last(float(x[-1]), float(y[-1]), axis, colour, theme))
    notes.append(style.note("<b>calibration loss</b> (nats)", theme, y=1, yshift=4))
    notes.append(style.note("<b>gap</b> (nats)", theme, y=0.42, yshift=4))
    notes.append(style.note("iteration t", theme, y=0, yanchor="top", yshift=-22))
    reach = max(float(t.max()), 1.0)
    base = style.layout(
        theme,
        300,
        summary=_summary(rows),
        reading=READING,
        revision="gap_curve",
        margin=(44, 52, 26, 40),
        cursor="x",
        narrow=narrow,
    )
    highest = float(np.nanmax(np.append(rows["gap"].to_numpy(dtype=float), 0.0)))
    changes: dict[str, Any] = {
        "hovermode": "x",
        "xaxis": style.axis(
            theme, range=[-0.02 * reach, reach * 1.02], anchor="y", dtick=style.whole_step(reach, 6 if narrow else 12)
        ),
        "yaxis": style.axis(
            theme,
            domain=[0, 0.42],
            range=[
                min(0.0, float(rows["gap"].min(skipna=True)) if rows["gap"].notna().any() else 0.0),
                highest * 1.12 or 1,
            ],
            zeroline=True,
            zerolinecolor=colours.zero,
            nticks=4,
        ),
        "yaxis2": style.axis(theme, domain=[0.58, 1], nticks=4),
        "annotations": notes,
    }
    if rows["gap"].notna().sum() == 0:
        notes.append(style.note("this method computes no gap", theme, x=0.5, y=0.2, xanchor="center", yanchor="middle"))
    return style.figure(traces, base | changes)


def _last(x: float, y: float, axis: str, colour: str, theme: style.Theme) -> dict[str, Any]:
    return style.note(
        style.number(y, signed=False),
        theme,
        xref="x",
        yref=axis,
        x=x,
        y=y,
        xshift=8,
        yshift=0,
        yanchor="middle",
        font={"size": style.TEXT, "color": colour},
    )


def _facts(rows: pd.DataFrame) -> list[str]:
    """What else is known of each iterate, a line each."""
    told = []
    for row in rows.to_dict("records"):
        parts = []
        if isinstance(row.get("vertices"), str) and row["vertices"]:
            parts.append(f"moved to {style.short(row['vertices'], 60)}")
        if row.get("step_size") is not None and np.isfinite(row["step_size"]):
            parts.append(f"step size {style.number(row['step_size'], signed=False)}")
        if row.get("in_hull") is False:
            parts.append("outside the hull: the gap is no certificate")
        told.append("".join(f"<br>{part}" for part in parts))
    return told


def _summary(rows: pd.DataFrame) -> str:
    said = []
    for column in ("loss", "gap"):
        known = rows[column].dropna()
        if len(known):
            first, last = (style.number(float(known.iloc[i]), signed=False) for i in (0, -1))
            said.append(f"{'calibration loss' if column == 'loss' else 'gap'} from {first} to {last} nats")
    return f"Over {len(rows)} iterates: {', '.join(said)}."
