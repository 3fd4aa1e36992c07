"""The loss on a plane through real models as a map, with merges and their paths on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _field as field
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "The strongest colour is the lowest loss; distances are true distances between weights. A run's dot is its foot on "
    "this plane: the larger the share outside, the less the colour under it says about the run."
)
LINES = 9
NAME = 0.05  # room above a model for its name, as a share of the longer side


@chart("Loss landscape", question="What does the loss look like between the models?", lens="landscape", reading=READING)
def landscape_contour(
    data: pd.DataFrame,
    *,
    theme: style.Theme = "light",
    narrow: bool = False,
    value: field.Value = "loss",
    task: str = "",
    until: float = math.inf,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """Map of loss or accuracy over x and y (L2 distance in weights), finished or not.

    Args:
        data: rows of the lens ``landscape`` (``series`` "grid" and "corner", ``x``, ``y``, ``column``, ``row``,
            ``stride``, ``task``, ``loss``, ``accuracy``), and below them, if runs are to be drawn, rows of the lens
            ``landscape_points``.
        value: what the colour shows.
        task: of the table; "" is the mean over tasks where there are several.
        until: draw the runs up to this iteration.
        limits: lowest and highest value of the colours, to compare two pictures; None fits them.

    A point not measured yet takes the colour of the nearest measured one of a coarser grid; contour lines are those of
    the finest grid that is complete.
    """
    rows, shown, measured = field.measured(data, value, task, ("x", "y"))
    if not len(measured):
        return style.empty("Nothing measured yet: press Measure.", theme, reading=READING, revision="landscape")
    grid = measured[measured["series"] == "grid"]
    ramp = field.Ramp.of(value, measured[value].to_numpy(dtype=float), limits)
    what = {"loss": "loss", "accuracy": "accuracy"}[value]
    traces: list[dict[str, Any]] = []
    if len(grid):
        x, y, z, level = fill(grid, value)
        traces += _map(x, y, z, ramp, what, theme) + _lines(x, y, z, level, ramp, theme)
    corners = measured[measured["series"] == "corner"].drop_duplicates("model")
    traces += _corners(corners, value, ramp, theme)
    traces += _checkpoints(rows[rows["series"] == "model"], corners, theme)
    found = field.paths(rows, theme, until)

    def place(part: pd.DataFrame) -> tuple[Any, Any]:
        return part["x"].to_numpy(dtype=float), part["y"].to_numpy(dtype=float)

    for path in found:
        hover = [field.sentence(row, "plane") for row in path.rows.itertuples()]
        traces += field.drawn(path, place, theme, hover)
    names, room = field.names_below(found, theme, narrow, 36)
    side = 300 if narrow else 430
    base = style.layout(
        theme,
        side + 30 + 40 + room,
        summary=_summary(measured, corners, found, value, shown, ramp),
        reading=READING,
        revision="landscape " + ",".join(corners["model"].astype(str)),
        margin=(44, 14, 30, 40 + room),
        narrow=narrow,
    )
    changes = {
        **_axes(measured, corners, theme),
        "annotations": [
            ramp.key(theme, narrow, what if shown in ("", "joint") else f"{what} on {style.short(shown, 24)}"),
            *_corner_names(corners, theme),
            *field.shares(found, place, theme, float(np.ptp(measured["y"].to_numpy(dtype=float))) / side),
            *names,
            style.note("distance between weights (L2)", theme, y=0, yanchor="top", yshift=-19),
        ],
    }
    return style.figure(traces, base | changes)


def fill(grid: pd.DataFrame, value: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(x, y, z[row, column], stride of the finest complete grid or 0) of a grid that need not be finished.

    Coarse points colour the block they stand for, finer ones are laid over it.
    """
    rows = grid.dropna(subset=["column", "row"]).drop_duplicates(["column", "row"])
    column, row = (rows[name].to_numpy(dtype=int) for name in ("column", "row"))
    stride = np.maximum(rows["stride"].to_numpy(dtype=int), 1)
    numbers = rows[value].to_numpy(dtype=float)
    size = int(max(column.max(), row.max())) + 1
    z = np.full((size, size), np.nan)
    for k in np.argsort(-stride, kind="stable"):
        half = stride[k] // 2
        z[max(row[k] - half, 0) : row[k] + half + 1, max(column[k] - half, 0) : column[k] + half + 1] = numbers[k]
    known = np.zeros((size, size), dtype=bool)
    known[row, column] = True
    z[row, column] = numbers
    complete = 0
    for step in sorted(set(stride.tolist()), reverse=True):
        if known[::step, ::step].all() and (size - 1) % step == 0:
            complete = step
    return _places(column, rows["x"], size), _places(row, rows["y"], size), z, complete


def _places(index: np.ndarray, coordinate: pd.Series, size: int) -> np.ndarray:
    """The coordinate of every grid line, from those that were measured: they are evenly spaced."""
    numbers = coordinate.to_numpy(dtype=float)
    first, last = int(index.argmin()), int(index.argmax())
    span = index[last] - index[first]
    step = (numbers[last] - numbers[first]) / span if span else 1.0
    return numbers[first] + step * (np.arange(size) - index[first])


def _map(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, ramp: field.Ramp, what: str, theme: style.Theme
) -> list[dict[str, Any]]:
    number = "%{z:.1%}" if ramp.value == "accuracy" else "%{z:.3g} nats"
    return [
        {
            "type": "heatmap",
            "name": what,
            "x": style.f4(x),
            "y": style.f4(y),
            "z": style.f4(z),
            "zmin": ramp.low,
            "zmax": ramp.high,
            "colorscale": ramp.scale(theme),
            "showscale": False,
            "hoverongaps": False,
            "hovertemplate": f"{what} <b>{number}</b><br>at ({'%{x:.3g}'}, {'%{y:.3g}'})<extra></extra>",
        }
    ]


def _lines(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, level: int, ramp: field.Ramp, theme: style.Theme
) -> list[dict[str, Any]]:
    """Contour lines at equal steps of colour, over the finest complete grid."""
    if not level or len(x) // level < 4:
        return []
    return [
        {
            "type": "contour",
            "name": "",
            "x": style.f4(x[::level]),
            "y": style.f4(y[::level]),
            "z": style.f4(ramp.even(z[::level, ::level])),
            "contours": {"coloring": "none", "start": 1 / LINES, "end": 1 - 1 / LINES, "size": 1 / LINES},
            "line": {"color": style.alpha(style.palette(theme).ink, 0.35), "width": 1, "smoothing": 0.8},
            "showscale": False,
            "hoverinfo": "skip",
        }
    ]


def _corners(corners: pd.DataFrame, value: str, ramp: field.Ramp, theme: style.Theme) -> list[dict[str, Any]]:
    """The base apart from the checkpoints, which a click may pin."""
    colours = style.palette(theme)
    unit = " nats" if value == "loss" else ""
    pinned = corners["model"].astype(str) != "base"
    traces = []
    for part, meta in ((corners[pinned], style.names("checkpoint")), (corners[~pinned], {})):
        if not len(part):
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "models of the plane",
                "x": style.f4(part["x"]),
                "y": style.f4(part["y"]),
                "marker": {
                    "symbol": "square",
                    "size": 11,
                    "color": colours.ink,
                    "line": {"width": 2, "color": colours.surface},
                },
                "customdata": part["model"].astype(str).tolist() if meta else None,
                "hovertext": [
                    f"<b>{style.safe(title)}</b> lies in the plane<br>{value} {ramp.text(number)}{unit}"
                    for title, number in zip(corner_titles(part), part[value].astype(float), strict=True)
                ],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "meta": meta or None,
            }
        )
    return traces


def _checkpoints(models: pd.DataFrame, corners: pd.DataFrame, theme: style.Theme) -> list[dict[str, Any]]:
    """Feet of the checkpoints that do not span the plane: small crosses, named on hover."""
    near = models[models["out_of_plane"].astype(float) > 0.02] if len(models) else models
    if not len(near):
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "other checkpoints",
            "x": style.f4(near["x"]),
            "y": style.f4(near["y"]),
            "marker": {"symbol": "x-thin", "size": 6, "line": {"width": 1.5, "color": style.palette(theme).muted}},
            "hovertext": [
                f"foot of <b>{style.safe(row.label)}</b><br>{style.percent(row.out_of_plane, 0)} of its distance lies "
                "outside the plane"
                for row in near.itertuples()
            ],
            "hovertemplate": "%{hovertext}<extra></extra>",
        }
    ]


def corner_titles(corners: pd.DataFrame) -> list[str]:
    titles = corners["model_title"] if "model_title" in corners else corners["model"]
    return [
        title if title and title != "nan" else name
        for title, name in zip(titles.astype(str), corners["model"].astype(str), strict=True)
    ]


def _corner_names(corners: pd.DataFrame, theme: style.Theme) -> list[dict[str, Any]]:
    colours = style.palette(theme)
    return [
        style.note(
            style.short(title, 26),
            theme,
            xref="x",
            yref="y",
            x=float(x),
            y=float(y),
            xanchor="center",
            yanchor="bottom",
            yshift=9,
            bgcolor=style.alpha(colours.surface, 0.7),
            borderpad=1,
            font={"size": style.SMALL, "color": colours.ink},
        )
        for title, x, y in zip(corner_titles(corners), corners["x"], corners["y"], strict=True)
    ]


def _axes(rows: pd.DataFrame, corners: pd.DataFrame, theme: style.Theme) -> dict[str, Any]:
    """Both axes on one scale: a picture of distances must not be stretched. The names above models have room."""
    changes = {}
    for name in ("x", "y"):
        low, high = float(rows[name].min()), float(rows[name].max())
        if name == "y" and len(corners):
            high = max(high, float(corners["y"].max()) + NAME * float(np.ptp(rows[["x", "y"]], axis=0).max()))
        pad = 0.03 * (high - low) or 0.5
        changes[f"{name}axis"] = style.axis(
            theme, range=[low - pad, high + pad], constrain="domain", nticks=6, showgrid=False
        )
    changes["xaxis"] |= {"constraintoward": "left"}
    changes["yaxis"] |= {"scaleanchor": "x", "scaleratio": 1, "constraintoward": "top"}
    return changes


def _summary(
    measured: pd.DataFrame,
    corners: pd.DataFrame,
    found: list[field.Path],
    value: field.Value,
    task: str,
    ramp: field.Ramp,
) -> str:
    best = measured.loc[measured[value].astype(float).idxmin() if value == "loss" else measured[value].idxmax()]
    unit = " nats" if value == "loss" else ""
    where = "all tasks together" if task == "joint" else task or "the task"
    words = [
        f"{value.capitalize()} on {where} at {len(measured)} points of a plane"
        + (f" through {style.listed(corner_titles(corners))}" if len(corners) else "")
        + f": the best is {ramp.text(float(best[value]))}{unit}"
    ]
    if found:
        parts = [f"{p.label} with {style.percent(float(p.last['out_of_plane']), 0)} outside" for p in found[:6]]
        words.append(f"runs drawn: {style.listed(parts, 6)}")
    return "; ".join(words) + "."
