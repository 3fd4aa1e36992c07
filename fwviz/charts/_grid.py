"""The map of rows × tasks shared by the charts that judge several models on several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _matrix as matrix
from fwviz.charts import _style as style

ROW = 32
LINE = 15  # px from one note above the map to the next
MEAN = "all of them"  # the column of the means
LEVEL = 6  # columns whose names stand level
MOST = 12  # columns in which numbers fit; on a phone half as many


@dataclass(frozen=True)
class Grid:
    """What a map shows: rows and columns by id, the number that colours each cell, and what stands in it.

    ``colour`` (R, C) is drawn around 0, high is good; NaN is an empty cell. ``facts`` (R, C, F) are the numbers that
    ``hover`` names as ``%{customdata[f]}``, the row being ``%{text}`` and the column ``%{x}``. ``framed`` (R, C) marks
    cells with an outline.
    """

    kind: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    colour: np.ndarray
    texts: np.ndarray
    facts: np.ndarray
    hover: str
    framed: np.ndarray | None = None


def cells(rows: pd.DataFrame, row: str, names: Sequence[str], tasks: Sequence[str], value: str) -> np.ndarray:
    """One column of a table as (R, C), NaN where it has no row."""
    table = rows.pivot_table(index=row, columns="task", values=value, aggfunc="first", sort=False, dropna=False)
    return table.reindex(index=list(names), columns=list(tasks)).to_numpy(dtype=float).copy()


def labels_of(rows: pd.DataFrame) -> dict[str, str]:
    """Run → what it is called, in order of appearance; the base, which is no run, has the id ""."""
    named = rows["label"].astype(str) if "label" in rows else rows["run"]
    return {run: label or run or "base" for run, label in dict(zip(rows["run"], named, strict=True)).items()}


def with_means(values: np.ndarray) -> np.ndarray:
    """(R, C) and a last column with the mean of each row, NaN where a value is missing."""
    return np.column_stack([values, values.mean(axis=1)])


def draw(
    grid: Grid,
    theme: style.Theme,
    narrow: bool,
    *,
    name: str,
    ends: tuple[str, str],
    unit: str,
    notes: Sequence[str],
    reading: str,
    summary: str,
) -> go.Figure:
    """The map, its key in words (``ends`` at low and high, ``unit`` of the colour), and ``notes`` above it."""
    colours = style.palette(theme)
    reach = style.limit(grid.colour)
    scale = colours.diverging[::-1]
    y, x = ([style.safe(key) for key in keys] for keys in (grid.rows, grid.columns))
    # The numbers of a cell name nothing: rows and columns do.
    meta = style.names(
        grid.kind, keys=["numbers"], rows={grid.kind: list(grid.rows)}, columns={"task": list(grid.columns)}
    )
    heat = {
        "type": "heatmap",
        "name": name,
        "z": style.f4(grid.colour),
        "x": x,
        "y": y,
        "zmin": -reach,
        "zmax": reach,
        "colorscale": [list(stop) for stop in zip(style.DIVERGING_STOPS, scale, strict=True)],
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "customdata": style.f4(grid.facts),
        "text": [[style.short(title, 60)] * len(x) for title in grid.rows.values()],
        "hovertemplate": f"{grid.hover}<extra></extra>",
        "meta": meta,
        "showscale": False,
    }
    traces: list[dict[str, Any]] = [heat]
    fits = len(grid.columns) <= (MOST // 2 if narrow else MOST)
    if fits:
        traces += _numbers(grid, x, y, reach, theme)
    blocks = "".join(style.coloured("■", colour) for colour in scale)
    low, high = style.number(-reach), style.number(reach)
    key = f"{low} {blocks} {high}{unit}" if narrow else f"{ends[0]} {low} {blocks} {high}{unit} {ends[1]}"
    lines = [*notes, key] if fits else [*notes, f"{'touch' if narrow else 'point at'} a cell for its number", key]
    labels = [_label(title, colours, 18 if narrow else 34) for title in grid.rows.values()]
    below = [style.short(title, 12 if narrow else 22) for title in grid.columns.values()]
    level = not narrow and len(below) <= LEVEL  # few columns are wide enough for their names
    left, top = (
        style.text_width([line for label in labels for line in label.split("<br>")]) + 12,
        LINE * len(lines) + 12,
    )
    bottom = 28 if level else style.text_width(below) + 14
    row = matrix.ROW if len(grid.rows) > 12 and not any("<br>" in label for label in labels) else ROW
    base = style.layout(
        theme,
        row * len(grid.rows) + top + bottom,
        summary=summary,
        reading=reading,
        revision=name,
        margin=(left, 12, top, bottom),
        narrow=narrow,
    )
    changes = {
        "xaxis": matrix.column_axis(below, theme, level=level),
        "yaxis": matrix.row_axis(labels, theme),
        "shapes": _frames(grid, theme),
        "annotations": [
            style.note(line, theme, xshift=(6 - left) * narrow, yshift=5 + LINE * (len(lines) - 1 - i))
            for i, line in enumerate(lines)
        ],
    }
    return style.figure(traces, base | changes)


def _label(title: str, colours: style.Palette, length: int) -> str:
    """The name of a row; of a run the method above, what is particular to it below."""
    first, _, rest = title.partition(f" {style.DOT} ")
    made = style.coloured(style.short(first, length), colours.ink)
    return made + f"<br>{style.coloured(style.short(rest, length), colours.muted)}" * bool(rest)


def _frames(grid: Grid, theme: style.Theme) -> list[dict[str, Any]]:
    """An outline around every marked cell."""
    if grid.framed is None:
        return []
    line = {"color": style.palette(theme).ink, "width": 1.5}
    return [
        {"type": "rect", "x0": j - 0.47, "x1": j + 0.47, "y0": i - 0.45, "y1": i + 0.45, "line": line}
        for i, j in zip(*np.nonzero(grid.framed), strict=True)
    ]


def _numbers(grid: Grid, x: list[str], y: list[str], reach: float, theme: style.Theme) -> list[dict[str, Any]]:
    """The texts in the cells: in the colour of the page where a cell is strong, else in that of the ink."""
    colours = style.palette(theme)
    with np.errstate(invalid="ignore"):
        strong = np.abs(grid.colour) > reach / 2
    made = []
    for colour, wanted in ((colours.surface, strong), (colours.ink, ~strong)):
        at = np.nonzero(wanted & np.isfinite(grid.colour))
        if len(at[0]):
            made.append(
                {
                    "type": "scatter",
                    "mode": "text",
                    "name": "numbers",
                    "x": [x[j] for j in at[1]],
                    "y": [y[i] for i in at[0]],
                    "text": [str(text) for text in grid.texts[at]],
                    "textfont": {"size": style.SMALL, "color": colour},
                    "hoverinfo": "skip",
                }
            )
    return made
