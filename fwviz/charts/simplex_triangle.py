"""All mixes of three checkpoints as a triangle, coloured by loss, with runs on it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _field as field
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Each corner is a checkpoint, each cell a mix of the three whose shares add up to 1; the strongest colour is the "
    "lowest loss. A run's dot is its foot on the triangle; 100 % outside is the base, which is no mix of them."
)
LAMBDAS = ("lambda_1", "lambda_2", "lambda_3")
HEIGHT = math.sqrt(3) / 2
LINES = 9


@chart(
    "Triangle of three checkpoints", question="Which mix of three checkpoints is best?", lens="simplex", reading=READING
)
def simplex_triangle(
    data: pd.DataFrame,
    *,
    theme: style.Theme = "light",
    narrow: bool = False,
    value: field.Value = "loss",
    task: str = "",
    until: float = math.inf,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """Hexagonal map of loss or accuracy over {λ ≥ 0, Σλ = 1}, finished or not, with contour lines and runs.

    Args:
        data: rows of the lens ``simplex`` (``series`` "grid" and "corner", ``lambda_1`` … ``lambda_3``, ``column``,
            ``row``, ``stride``, ``task``, ``loss``, ``accuracy``), and below them, if runs are to be drawn, rows of the
            lens ``simplex_paths``.
        value: what the colour shows.
        task: of the table; "" is the mean over tasks where there are several.
        until: draw the runs up to this iteration.
        limits: lowest and highest value of the colours, to compare two pictures; None fits them.
    """
    rows, shown, measured = field.measured(data, value, task, LAMBDAS)
    if not len(measured):
        return style.empty("Nothing measured yet: press Measure.", theme, reading=READING, revision="simplex")
    grid = measured[measured["series"] == "grid"].drop_duplicates(["column", "row"])
    corners = measured[measured["series"] == "corner"].drop_duplicates("model")
    titles = _titles(corners)
    ramp = field.Ramp.of(value, measured[value].to_numpy(dtype=float), limits)
    side = 290 if narrow else 480  # px along a side of the triangle
    traces: list[dict[str, Any]] = []
    if len(grid):
        traces += _cells(grid, titles, side, ramp, theme) + _lines(grid, ramp, theme)
    traces += [_surroundings(theme), _outline(theme), *_corners(corners, titles, ramp, theme)]
    found = field.paths(rows, theme, until)
    for path in found:
        hover = [_sentence(row) for row in path.rows.itertuples()]
        traces += field.drawn(path, place, theme, hover)
    names, room = field.names_below(found, theme, narrow, 26)
    plot = int(side * (HEIGHT + 0.2))
    base = style.layout(
        theme,
        plot + 30 + 30 + room,
        summary=_summary(grid if len(grid) else measured, titles, found, value, shown, ramp),
        reading=READING,
        revision="simplex " + ",".join(corners["model"].astype(str)),
        margin=(10, 10, 30, 30 + room),
        narrow=narrow,
    )
    hidden = {"visible": False, "fixedrange": True, "constrain": "domain"}
    feet = [place(path.rows) for path in found]
    spread_x = np.concatenate([[-0.1, 1.1], *(x for x, _ in feet)])
    spread_y = np.concatenate([[-0.1, HEIGHT + 0.1], *(y for _, y in feet)])
    # Feet outside the triangle widen the view, but not beyond the triangle's own size.
    reach_x = np.clip(spread_x, -0.5, 1.5)
    reach_y = np.clip(spread_y, -0.5, HEIGHT + 0.5)
    changes = {
        "xaxis": hidden | {"range": [float(reach_x.min()), float(reach_x.max())], "constraintoward": "left"},
        "yaxis": hidden | {"range": [float(reach_y.min()), float(reach_y.max())], "scaleanchor": "x", "scaleratio": 1},
        "annotations": [
            ramp.key(theme, narrow, value if shown in ("", "joint") else f"{value} on {style.short(shown, 24)}"),
            *_names(titles, theme),
            *field.shares(found, place, theme, 1 / side),
            *names,
        ],
    }
    return style.figure(traces, base | changes)


def place(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric → (x, y): the first corner bottom left, the second bottom right, the third on top."""
    second, third = (rows[name].to_numpy(dtype=float) for name in LAMBDAS[1:])
    return second + third / 2, third * HEIGHT


def finest(grid: pd.DataFrame) -> tuple[int, int]:
    """(grid steps along a side, stride of the finest complete level or 0) of a grid that need not be finished."""
    column, row = (grid[name].to_numpy(dtype=int) for name in ("column", "row"))
    steps = max(int((column + row).max()), 1)
    complete = 0
    for stride in sorted({*np.maximum(grid["stride"].astype(int), 1)}, reverse=True):
        on = (column % stride == 0) & (row % stride == 0)
        side = steps // stride
        if steps % stride == 0 and int(on.sum()) == (side + 1) * (side + 2) // 2:
            complete = int(stride)
    return steps, complete


def _cells(
    grid: pd.DataFrame, titles: dict[str, str], side: int, ramp: field.Ramp, theme: style.Theme
) -> list[dict[str, Any]]:
    """A hexagon per point, as large as the level it belongs to; levels that are complete take the finest's size."""
    steps, complete = finest(grid)
    stride = np.maximum(grid["stride"].to_numpy(dtype=int), 1)
    stride = np.where(stride >= complete, complete or stride, stride)
    order = np.argsort(-stride, kind="stable")
    rows = grid.iloc[order]
    x, y = place(rows)
    unit = " nats" if ramp.value == "loss" else ""
    mix = " + ".join(f"%{{customdata[{k}]:.0%}} {style.short(title, 24)}" for k, title in enumerate(titles.values()))
    number = "%{marker.color:.1%}" if ramp.value == "accuracy" else "%{marker.color:.3g}"
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": ramp.value,
            "x": style.f4(x),
            "y": style.f4(y),
            "marker": {
                # A pointed-top hexagon of plotly is 0.866 times as wide as its size.
                "symbol": "hexagon",
                "size": style.f4(stride[order] * side / steps / 0.86),
                "color": style.f4(rows[ramp.value]),
                "cmin": ramp.low,
                "cmax": ramp.high,
                "colorscale": ramp.scale(theme),
                "showscale": False,
                "opacity": 1,
                "line": {"width": 0},
            },
            "customdata": style.f4(rows[list(LAMBDAS)]),
            "hovertemplate": f"{mix}<br>{ramp.value} <b>{number}{unit}</b><extra></extra>",
        }
    ]


def _lines(grid: pd.DataFrame, ramp: field.Ramp, theme: style.Theme) -> list[dict[str, Any]]:
    """Contour lines at equal steps of colour: where a level crosses the edges of each small triangle."""
    steps, complete = finest(grid)
    if not complete or steps // complete < 3:
        return []
    even = ramp.even(grid[ramp.value].to_numpy(dtype=float))
    known = {(int(c), int(r)): float(v) for c, r, v in zip(grid["column"], grid["row"], even, strict=True)}
    x: list[float] = []
    y: list[float] = []
    s = complete
    for i in range(0, steps, s):
        for j in range(0, steps - i, s):
            triangles = [((i, j), (i + s, j), (i, j + s))]
            if i + j + 2 * s <= steps:
                triangles.append(((i + s, j + s), (i + s, j), (i, j + s)))
            for corners in triangles:
                for level in np.arange(1, LINES) / LINES:
                    ends = list(_crossings(corners, known, float(level)))
                    if len(ends) == 2:
                        for a, b in ends:
                            x.append((a + b / 2) / steps)
                            y.append(b * HEIGHT / steps)
                        x.append(math.nan)
                        y.append(math.nan)
    return (
        [
            {
                "type": "scatter",
                "mode": "lines",
                "name": "",
                "x": style.f4(x),
                "y": style.f4(y),
                "line": {"color": style.alpha(style.palette(theme).ink, 0.4), "width": 1},
                "hoverinfo": "skip",
            }
        ]
        if x
        else []
    )


def _crossings(corners: Any, known: dict[tuple[int, int], float], level: float) -> Any:
    """Where a level crosses the sides of a triangle, linearly between its corners."""
    for p, q in pairwise([*corners, corners[0]]):
        low, high = known[p], known[q]
        if (low < level) != (high < level):
            share = (level - low) / (high - low)
            yield p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])


def _surroundings(theme: style.Theme) -> dict[str, Any]:
    """The page over what lies outside the triangle, where cells at its edge reach: a frame with a hole."""
    far = 3.0
    # The hole runs against the frame, so that it stays a hole under either rule of filling.
    x = [-far, -far, far, far, -far, 0, 1, 0.5, 0, -far]
    y = [-far, far, far, -far, -far, 0, 0, HEIGHT, 0, -far]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "",
        "x": style.f4(x),
        "y": style.f4(y),
        "fill": "toself",
        "fillcolor": style.palette(theme).surface,
        "line": {"width": 0, "color": style.palette(theme).surface},
        "hoverinfo": "skip",
    }


def _outline(theme: style.Theme) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "",
        "x": style.f4([0, 1, 0.5, 0]),
        "y": style.f4([0, 0, HEIGHT, 0]),
        "line": {"color": style.palette(theme).ink, "width": 1.5},
        "hoverinfo": "skip",
    }


def _corners(
    corners: pd.DataFrame, titles: dict[str, str], ramp: field.Ramp, theme: style.Theme
) -> list[dict[str, Any]]:
    if not len(corners):
        return []
    colours = style.palette(theme)
    x, y = place(corners)
    unit = " nats" if ramp.value == "loss" else ""
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "checkpoints",
            "cliponaxis": False,
            "x": style.f4(x),
            "y": style.f4(y),
            "marker": {
                "symbol": "square",
                "size": 11,
                "color": colours.ink,
                "line": {"width": 2, "color": colours.surface},
            },
            "customdata": corners["model"].astype(str).tolist(),
            "hovertext": [
                f"<b>{style.safe(titles[name])}</b> alone<br>{ramp.value} {ramp.text(number)}{unit}"
                for name, number in zip(corners["model"].astype(str), corners[ramp.value].astype(float), strict=True)
            ],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "meta": style.names("checkpoint"),
        }
    ]


def _titles(corners: pd.DataFrame) -> dict[str, str]:
    """Corner → title, in the order of the corners: the one whose own λ is 1 says which it is."""
    ordered = corners.sort_values(list(LAMBDAS), ascending=False, kind="stable")
    titles = ordered["model_title"] if "model_title" in ordered else ordered["model"]
    return {
        name: title if title and title != "nan" else name
        for name, title in zip(ordered["model"].astype(str), titles.astype(str), strict=True)
    }


def _names(titles: dict[str, str], theme: style.Theme) -> list[dict[str, Any]]:
    spots = (
        (-0.09, 0.0, "top", -9, "left"),
        (1.09, 0.0, "top", -9, "right"),
        (0.5, HEIGHT, "bottom", 9, "center"),
    )
    font = {"size": style.TEXT, "color": style.palette(theme).ink}
    return [
        style.note(
            style.short(title, 22),
            theme,
            xref="x",
            yref="y",
            x=x,
            y=y,
            yanchor=end,
            yshift=shift,
            xanchor=side,
            font=font,
        )
        for title, (x, y, end, shift, side) in zip(titles.values(), spots, strict=False)
    ]


def _sentence(row: Any) -> str:
    """The hover text of one iterate."""
    mix = " : ".join(style.percent(getattr(row, column), 0) for column in LAMBDAS)
    return f"{field.sentence(row, 'triangle')}<br>its foot is the mix {mix}"


def _summary(
    grid: pd.DataFrame,
    titles: dict[str, str],
    found: list[field.Path],
    value: field.Value,
    task: str,
    ramp: field.Ramp,
) -> str:
    best = grid.loc[grid[value].astype(float).idxmin() if value == "loss" else grid[value].astype(float).idxmax()]
    unit = " nats" if value == "loss" else ""
    mix = [
        f"{style.percent(float(best[column]), 0)} {title}"
        for column, title in zip(LAMBDAS, titles.values(), strict=False)
    ]
    where = "all tasks together" if task == "joint" else task or "the task"
    text = f"{value.capitalize()} on {where} at {len(grid)} mixes"
    text += f" of {style.listed(list(titles.values()))}" if titles else ""
    text += f": the best is {ramp.text(float(best[value]))}{unit}" + (f" at {', '.join(mix)}" if mix else "")
    if found:
        parts = [f"{p.label} with {style.percent(float(p.last['out_of_plane']), 0)} outside" for p in found[:6]]
        text += f"; runs drawn: {style.listed(parts, 6)}"
    return text + "."
