"""The checkpoint × checkpoint map shared by the charts that compare two task vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _matrix as matrix
from fwviz.charts import _style as style

TOP = 26


def square(
    rows: pd.DataFrame,
    value: str,
    theme: style.Theme,
    narrow: bool,
    *,
    name: str,
    middle: float,
    blue_is_high: bool,
    ends: tuple[str, str],
    hover: str,
    reading: str,
    summary: str,
    percent: bool,
    least: float,
) -> go.Figure:
    """A map of one number per pair, white at ``middle``; the diagonal, which says nothing, stays empty.

    Colours saturate at the largest distance to the middle, but not below ``least``: what hardly differs looks so.
    ``ends`` are the words of the key at the low and the high end; ``hover`` ends the sentence "<row> and <column> …".
    """
    names, labels, left = matrix.span_of_labels(rows, narrow, theme)
    table = rows.pivot_table(index="checkpoint", columns="other", values=value, aggfunc="first", sort=False)
    values = table.reindex(index=list(names), columns=list(names)).to_numpy(dtype=float).copy()
    np.fill_diagonal(values, np.nan)
    reach = max(style.limit(values - middle), least)
    colours = style.palette(theme).diverging
    colours = colours[::-1] if blue_is_high else colours
    ids = [style.safe(checkpoint) for checkpoint in names]
    crowded = len(names) > (6 if narrow else 12)
    heat = {
        "type": "heatmap",
        "name": name,
        "z": style.f4(values),
        "x": ids,
        "y": ids,
        "zmin": middle - reach,
        "zmax": middle + reach,
        "colorscale": [list(stop) for stop in zip(style.DIVERGING_STOPS, colours, strict=True)],
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": f"<b>%{{y}}</b> and <b>%{{x}}</b>:<br>{hover}.<extra></extra>",
        "meta": style.names("checkpoint", rows={"checkpoint": list(names)}, columns={"checkpoint": list(names)}),
        "showscale": False,
    }
    traces = [heat]
    if not crowded:
        traces += _numbers(values, ids, middle, reach, theme, percent)
    blocks = "".join(style.coloured("■", colour) for colour in colours)
    low, high = (
        style.percent(middle + sign * reach, 0) if percent else style.number(middle + sign * reach) for sign in (-1, 1)
    )
    key = f"{low} {blocks} {high}" if narrow else f"{ends[0]} {low} {blocks} {high} {ends[1]}"
    below = [style.short(title, 10 if narrow else 18) for title in names.values()]
    bottom = style.text_width(below) + 14
    row = matrix.ROW if len(names) > 8 else 30
    base = style.layout(
        theme,
        row * len(names) + TOP + bottom,
        summary=summary,
        reading=reading,
        revision=name,
        margin=(left, 12, TOP, bottom),
        narrow=narrow,
    )
    changes = {
        "xaxis": matrix.column_axis(below, theme),
        "yaxis": matrix.row_axis(labels, theme),
        "annotations": [style.note(key, theme, yshift=5)],
    }
    return style.figure(traces, base | changes)


def _numbers(
    values: np.ndarray, ids: list[str], middle: float, reach: float, theme: style.Theme, percent: bool
) -> list[dict[str, Any]]:
    """The numbers in the cells: in the colour of the page where a cell is strong, else in that of the ink."""
    colours = style.palette(theme)
    with np.errstate(invalid="ignore"):
        strong = np.abs(values - middle) > reach / 2
    made = []
    for colour, cells in ((colours.surface, strong), (colours.ink, ~strong)):
        rows, columns = np.nonzero(cells & np.isfinite(values))
        if len(rows):
            made.append(
                {
                    "type": "scatter",
                    "mode": "text",
                    "name": "numbers",
                    "x": [ids[j] for j in columns],
                    "y": [ids[i] for i in rows],
                    "text": [_cell(value, reach, percent) for value in values[rows, columns]],
                    "textfont": {"size": style.SMALL, "color": colour},
                    "hoverinfo": "skip",
                }
            )
    return made


def _cell(value: float, reach: float, percent: bool) -> str:
    """A number as short as tells it from its neighbours: percentages that lie close together get a decimal."""
    if percent:
        return f"{100 * value:.1f}" if reach < 0.1 else f"{value:.0%}"
    text = f"{value:.2f}".removeprefix("-")
    return f"{style.MINUS}{text}" if value < 0 and float(text) else text


def extremes(rows: pd.DataFrame, value: str) -> tuple[pd.Series, pd.Series] | None:
    """The pairs of different checkpoints with the highest and the lowest number; None if there is no pair."""
    pairs = rows[rows["checkpoint"] != rows["other"]]
    if not len(pairs):
        return None
    return pairs.loc[pairs[value].idxmax()], pairs.loc[pairs[value].idxmin()]


def pair(row: pd.Series) -> str:
    """ "a and b" of one pair, by their titles."""
    first, second = (str(row.get(f"{side}_title", row[side])) for side in ("checkpoint", "other"))
    return f"{first} and {second}"
