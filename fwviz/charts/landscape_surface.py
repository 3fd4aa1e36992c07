"""The loss on a plane through real models as a relief, with merges and their paths at the height of their own loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _field as field
from fwviz.charts import _style as style
from fwviz.charts.landscape_contour import corner_titles, fill
from fwviz.registry import chart

READING = (
    "The relief is the loss on the plane, cut off where it is far too high. A run stands at its own loss; its stem "
    "leads to the plane and is as long as the map of the plane is wrong about the run."
)


@chart(
    "Loss landscape, as a relief",
    question="Does the plane tell the truth about the merges?",
    lens="landscape",
    reading=READING,
)
def landscape_surface(
    data: pd.DataFrame,
    *,
    theme: style.Theme = "light",
    narrow: bool = False,
    value: field.Value = "loss",
    task: str = "",
    until: float = math.inf,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """Surface of loss (nats) or accuracy over x and y (L2 distance in weights). Needs plotly's bundle with 3-D.

    Args:
        data, value, task, until, limits: as of :func:`fwviz.charts.landscape_contour.landscape_contour`.

    A run without a measured loss of its own, or drawn over a single task, lies on the surface.
    """
    rows, shown, measured = field.measured(data, value, task, ("x", "y"))
    grid = measured[measured["series"] == "grid"]
    if not len(measured):
        return style.empty("Nothing measured yet: press Measure.", theme, reading=READING, revision="relief")
    colours = style.palette(theme)
    ramp = field.Ramp.of(value, measured[value].to_numpy(dtype=float), limits)
    unit = " nats" if value == "loss" else ""
    number = "%{z:.1%}" if value == "accuracy" else "%{z:.3g}"
    traces: list[dict[str, Any]] = []
    if len(grid):
        x, y, z, level = fill(grid, value)
        step = level or 1
        x, y, z = x[::step], y[::step], np.clip(z[::step, ::step], ramp.low, ramp.high)
        traces.append(
            {
                "type": "surface",
                "name": value,
                "x": style.f4(x),
                "y": style.f4(y),
                "z": style.f4(z),
                "cmin": ramp.low,
                "cmax": ramp.high,
                "colorscale": ramp.scale(theme),
                "showscale": False,
                "opacity": 0.96,
                "hovertemplate": f"{value} <b>{number}{unit}</b><extra></extra>",
            }
        )

    def surface(row: Any) -> float:
        """The height of the surface under a point, NaN beside it."""
        if not len(grid):
            return math.nan
        inside = x[0] <= row["x"] <= x[-1] and y[0] <= row["y"] <= y[-1]
        return float(z[np.abs(y - row["y"]).argmin(), np.abs(x - row["x"]).argmin()]) if inside else math.nan

    labels: list[dict[str, Any]] = []
    corners = measured[measured["series"] == "corner"].drop_duplicates("model")
    if len(corners):
        height = np.clip(corners[value].to_numpy(dtype=float), ramp.low, ramp.high)
        titles = [style.short(title, 20) for title in corner_titles(corners)]
        traces.append(
            {
                "type": "scatter3d",
                "mode": "markers",
                "name": "models of the plane",
                "x": style.f4(corners["x"]),
                "y": style.f4(corners["y"]),
                "z": style.f4(height),
                "hovertext": titles,
                "marker": {"symbol": "square", "size": 5, "color": colours.ink},
                "hovertemplate": f"%{{hovertext}}<br>{value} {number}{unit}<extra></extra>",
            }
        )
        # Text of a trace would be cut by the relief, and has no ground of its own to be read on.
        labels = [
            {
                "x": float(row.x),
                "y": float(row.y),
                "z": float(z_of),
                "text": title,
                "showarrow": False,
                "yshift": 13,
                "font": {"size": style.SMALL, "color": colours.ink},
                "bgcolor": style.alpha(colours.surface, 0.7),
            }
            for row, z_of, title in zip(corners.itertuples(), height, titles, strict=True)
        ]
    found = field.paths(rows, theme, until)
    for path in found:
        traces += _standing(path, value, surface, ramp, own=shown in ("", "joint"), theme=theme)
    names, room = field.names_below(found, theme, narrow, 8)
    base = style.layout(
        theme,
        (330 if narrow else 470) + 30 + 20 + room,
        summary=f"Relief of the {value} at {len(measured)} points of a plane"
        + (f" through {style.listed(corner_titles(corners))}" if len(corners) else "")
        + f", from {ramp.text(ramp.low)} to {ramp.text(ramp.high)}{unit}; {len(found)} runs drawn.",
        reading=READING,
        revision="relief " + ",".join(corners["model"].astype(str)),
        margin=(0, 0, 30, 20 + room),
        narrow=narrow,
    )
    quiet = {
        "showbackground": False,
        "gridcolor": colours.grid,
        "zeroline": False,
        "tickfont": {"size": 10, "color": colours.muted},
        "nticks": 4,
        "showspikes": False,
    }
    titled = {"font": {"size": style.SMALL, "color": colours.muted}}
    changes = {
        "dragmode": "orbit",
        "scene": {
            "bgcolor": "rgba(0,0,0,0)",
            "xaxis": quiet | {"title": titled | {"text": "x (L2)"}},
            "yaxis": quiet | {"title": titled | {"text": "y (L2)"}},
            "zaxis": quiet | {"title": titled | {"text": f"{value}{' (nats)' if unit else ''}"}},
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.6},
            "camera": {"eye": {"x": 1.3, "y": -1.3, "z": 0.9}},
            "annotations": labels,
        },
        "annotations": [
            ramp.key(theme, narrow, value if shown in ("", "joint") else f"{value} on {style.short(shown, 24)}"),
            *names,
        ],
    }
    return style.figure(traces, base | changes)


def _standing(
    path: field.Path, value: field.Value, surface: Any, ramp: field.Ramp, *, own: bool, theme: style.Theme
) -> list[dict[str, Any]]:
    """A path at the height of its own measurements, with stems to the surface."""
    rows = path.rows
    ground = np.array([surface(row) for row in rows.to_dict("records")])
    heights = pd.to_numeric(rows[value], errors="coerce").to_numpy(dtype=float) if own else np.full(len(rows), np.nan)
    heights = np.where(np.isfinite(heights), heights, ground)
    ground = np.where(np.isfinite(ground), ground, heights)
    known = np.isfinite(heights)
    if not known.any():
        return []
    x, y = (rows[name].to_numpy(dtype=float)[known] for name in ("x", "y"))
    # Cut off above like the relief; a run below all of the plane stands there, or the stem would hide what it is for.
    most = ramp.high if value == "loss" else math.inf
    heights, ground = (np.minimum(values[known], most) for values in (heights, ground))
    stems = [np.column_stack([v, v, np.full(len(v), np.nan)]).ravel() for v in (x, y)]
    stems.append(np.column_stack([ground, heights, np.full(len(x), np.nan)]).ravel())
    hover = [text for text, keep in zip(map(_sentence, rows.itertuples()), known, strict=True) if keep]
    return [
        {
            "type": "scatter3d",
            "mode": "lines",
            "name": "",
            **{axis: style.f4(values) for axis, values in zip("xyz", stems, strict=True)},
            "line": {"color": style.palette(theme).muted, "width": 2},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter3d",
            "mode": "lines+markers",
            "name": style.short(path.label, 30),
            "x": style.f4(x),
            "y": style.f4(y),
            "z": style.f4(heights),
            "line": {"color": path.colour, "width": 5},
            "marker": {"size": 4, "color": path.colour},
            "customdata": [[float(t)] for t in rows["t"][known]],
            "hovertext": hover,
            "hovertemplate": f"<b>{style.short(path.label, 60)}</b>, %{{hovertext}}<extra></extra>",
            "meta": style.names("t", keys=("t",), of={"run": path.run}),
        },
    ]


def _sentence(row: Any) -> str:
    return field.sentence(row, "plane")
